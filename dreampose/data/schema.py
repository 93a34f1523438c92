"""One row of training data a clip: its columns, and how a clip and its motion become one.

Knows nothing of training or Ray. Arrays travel as raw bytes beside their shape, because ragged
tensors do not survive Parquet readers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Shaped, UInt8
from torch import nn

from dreampose import poses
from dreampose.config import Recipe
from dreampose.data import augmentation
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.files import new_file
from dreampose.models.adapter import clip_tokens
from dreampose.models.subject import Components, fingerprint
from dreampose.models.vae import LATENT_SCALE, LatentCodec, encode_batch_size
from dreampose.types import Clip

ARRAYS: Mapping[str, np.dtype[Any]] = {
    "frames": np.dtype(np.uint8),
    "poses": np.dtype(np.float16),
    "latents": np.dtype(np.float16),
    "tokens": np.dtype(np.float16),
    "crops": np.dtype(np.int32),
    "colours": np.dtype(np.int32),
    "joints": np.dtype(np.float32),
    "confidence": np.dtype(np.float32),
}
"""Array columns: frames (t H W 3), poses (k t c h w) and latents (k t c h w) for each of k views,
tokens (t n d), crops (k 4) in pixels of `frames` and colours (k 3), the channel order, of the
views; joints (t j 4), confidence (t). View 0 is the frame as it is, then come the crops in the
clip's own colours, then the whole frame in other colours."""

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("subject", pa.string()),
        ("fps", pa.float64()),
        ("num_frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("recipe", pa.string()),
        ("estimator", pa.string()),
        ("model_fingerprint", pa.string()),
        ("error", pa.string()),
        *((name, pa.large_binary()) for name in ARRAYS),
        *((f"{name}_shape", pa.list_(pa.int64())) for name in ARRAYS),
    ]
)
"""Columns of the data. `fps` is 0 where the frames are photos. `error` tells why a video was
rejected; such rows hold no arrays."""

ENCODE_BATCH = 32
"""Frames encoded together at most."""


def encoders_fingerprint(pipe: Components) -> str:
    """Name of what cached latents (and tokens of a frozen encoder) come from.

    The VAE's decoder is left out: when it is trained further, data stays usable. The scale of its
    latents is not.
    """
    frozen = ("image_encoder",) if pipe.recipe.image_encoder_frozen else ()
    weights = fingerprint(pipe, ("vae", *frozen), without=("vae.decoder", "vae.post_quant_conv"))
    scale = json.dumps([pipe.vae.config.get(name) for name in LATENT_SCALE])
    return hashlib.sha256(f"{weights} {scale}".encode()).hexdigest()[:16]


def working_size(clip: Clip, recipe: Recipe) -> tuple[int, int]:
    """Height and width in pixels at which a clip's motion is best extracted.

    The size of the recipe that the clip is fitted into, or twice it where the video is that large,
    so that crops are not blurred by enlarging them again.
    """
    _, height, width, _ = clip.frames.shape
    rows, columns = recipe.size_for(height, width)
    factor = 2 if height >= 2 * rows and width >= 2 * columns else 1
    return factor * rows, factor * columns


def error_row(
    *, clip_id: str, path: str, subject: str, recipe: Recipe, error: str
) -> dict[str, Any]:
    """The row of a video that was rejected, with its reason."""
    row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    row |= {"clip_id": clip_id, "path": path, "subject": subject, "error": error}
    return row | {
        "recipe": recipe.name,
        "fps": 0.0,
        "num_frames": 0,
        "height": recipe.height,
        "width": recipe.width,
    }


@torch.no_grad()
def encode_clip(
    clip: Clip,
    motion: poses.Motion,
    *,
    recipe: Recipe,
    pipe: Components | None = None,
    seed: int,
    clip_id: str,
    subject: str,
) -> dict[str, Any]:
    """One row of training data: a clip's frames, pose maps, latents and views.

    Args:
        clip: the video.
        motion: its poses, a frame each, at the recipe's size for this clip or a multiple
            (`working_size`).
        recipe: sizes and views; see `Recipe.num_crops` and `Recipe.num_recolours`.
        pipe: pipeline whose VAE (and frozen image encoder) encodes the frames; `None` leaves
            latents and tokens out, which is what the VAE stage needs.
        seed: the views depend on it and on `clip_id` alone.
        clip_id: unique name of the clip.
        subject: who is in it.

    Raises:
        InputError: motion and clip differ in length, or the motion's size is no multiple of the
            recipe's, or its maps have other channels.
    """
    height, width = recipe.size_for(*clip.frames.shape[1:3])
    factor = motion.height // height
    if motion.num_frames != len(clip.frames):
        raise InputError(
            f"motion must have a pose for each of {len(clip.frames)} frames, "
            f"got {motion.num_frames}"
        )
    if factor < 1 or (motion.height, motion.width) != (factor * height, factor * width):
        raise InputError(
            f"motion size must be a multiple of {height}x{width}, "
            f"got {motion.height}x{motion.width}"
        )
    if motion.num_channels != recipe.pose_channels:
        raise InputError(
            f"motion must have maps of pose_channels = {recipe.pose_channels}, "
            f"got {motion.num_channels}"
        )
    name_key = int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big")
    generator = np.random.default_rng((seed, name_key))
    boxes = augmentation.random_boxes(
        recipe.num_crops,
        height=height,
        width=width,
        smallest=recipe.crop_scale,
        generator=generator,
    )
    orders = augmentation.random_orders(recipe.num_recolours, generator=generator)
    boxes = np.concatenate([boxes, np.repeat(boxes[:1], recipe.num_recolours, axis=0)])
    orders = np.concatenate([np.tile(np.arange(3, dtype=np.int32), (recipe.num_crops, 1)), orders])
    full = video.fit(clip.frames, motion.height, motion.width)
    maps = np.asarray(motion.maps)
    crops = [
        np.ascontiguousarray(
            augmentation.crop_frames(full, box * factor, height, width)[..., order]
        )
        for box, order in zip(boxes, orders, strict=True)
    ]
    pose_crops = np.stack(
        [
            poses.to_grid(
                augmentation.crop(maps, box * factor),
                recipe.at(height, width).latent_size,
                recipe.pose_resize,
                recipe.pose_detail,
            ).numpy()
            for box in boxes
        ]
    )
    arrays: dict[str, np.ndarray] = {
        "frames": crops[0],
        "poses": pose_crops,
        "crops": boxes,
        "colours": orders,
        "joints": np.asarray(motion.joints) / np.array([factor, factor, factor, 1], np.float32),
        "confidence": np.asarray(motion.confidence),
    }
    model_fingerprint = None
    if pipe is not None:
        model_fingerprint = encoders_fingerprint(pipe)
        codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
        arrays["latents"] = np.stack([_encode(codec.encode, frames, pipe.vae) for frames in crops])
        if recipe.image_encoder_frozen:
            arrays["tokens"] = _encode(
                lambda images: clip_tokens(pipe.image_encoder, images, fit=recipe.photo_fit),
                crops[0],
                pipe.image_encoder,
            )
    return {
        "clip_id": clip_id,
        "path": clip.source,
        "subject": subject,
        "fps": float(clip.fps),
        "num_frames": len(clip.frames),
        "height": height,
        "width": width,
        "recipe": recipe.name,
        "estimator": motion.estimator,
        "model_fingerprint": model_fingerprint,
        "error": None,
    } | _pack(arrays)


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as one Parquet file, a row group each so that clips are read one at a time."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    with new_file(path) as part:
        pq.write_table(table, part, compression="zstd", row_group_size=1)


def _pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for name, dtype in ARRAYS.items():
        values = arrays.get(name)
        cells[name] = None if values is None else values.astype(dtype).tobytes()
        cells[f"{name}_shape"] = None if values is None else list(values.shape)
    return cells


def _encode(
    encoder: Any, frames: UInt8[np.ndarray, "t H W 3"], module: nn.Module
) -> Shaped[np.ndarray, "t ..."]:
    parameter = next(module.parameters())
    count = encode_batch_size(*frames.shape[1:3], at_most=ENCODE_BATCH)
    parts = [
        encoder(video.to_model(frames[start : start + count]).to(parameter))
        for start in range(0, len(frames), count)
    ]
    return torch.cat(parts).half().cpu().numpy()
