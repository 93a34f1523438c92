"""Columns of the training data, and encoding of clips as rows."""

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
"""Array columns: frames (t H W 3), poses (k t c h w) and latents (k t c h w) of k views,
tokens (t n d), crops (k 4) in pixels of `frames` and colours (k 3), the channel order, of the
views; joints (t j 4), confidence (t). View 0 is the whole frame; then come the crops, then the
whole frame with permuted colour channels. Each array is stored as raw bytes next to its shape,
because Parquet readers do not support ragged tensors."""

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
"""Columns of the data. `fps` is 0 for photos. `error` says why a video was rejected; such rows have
no arrays."""

ENCODE_BATCH = 32
"""Maximum number of frames per encoder batch."""


def encoders_fingerprint(pipe: Components) -> str:
    """Fingerprint of the models that made cached latents and tokens.

    It covers the VAE's encoder, latent scale and pixel range, and a frozen image encoder. The VAE's
    decoder is left out, so data stays valid when the decoder is trained further.
    """
    frozen = ("image_encoder",) if pipe.recipe.image_encoder_frozen else ()
    weights = fingerprint(
        pipe,
        ("vae", *frozen),
        without=("vae.decoder", "vae.post_quant_conv"),
        conventions=("image_range", "frame_fit", *(("photo_fit",) if frozen else ())),
    )
    scale = json.dumps([pipe.vae.config.get(name) for name in LATENT_SCALE])
    return hashlib.sha256(f"{weights} {scale}".encode()).hexdigest()[:16]


def error_row(
    *, clip_id: str, path: str, subject: str, recipe: Recipe, error: str
) -> dict[str, Any]:
    """Makes the row of a rejected video, with the reason."""
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
    """Encodes a clip and its motion as a row of training data.

    Args:
        clip: the video.
        motion: one pose per frame, at the recipe's size for this clip or a multiple of it
            (`working_size`).
        recipe: frame sizes, `num_crops` and `num_recolours`.
        pipe: its VAE, and its image encoder if frozen, encode the frames; None leaves latents and
            tokens out, which the VAE stage does not need.
        seed: of the views, together with `clip_id`.
        clip_id: unique name of the clip.
        subject: name of the subject.

    Raises:
        InputError: motion and clip differ in length, the motion's size is not a multiple of the
            recipe's, or its maps have another number of channels.
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
    orders = augmentation.random_channel_orders(recipe.num_recolours, generator=generator)
    boxes = np.concatenate([boxes, np.repeat(boxes[:1], recipe.num_recolours, axis=0)])
    orders = np.concatenate([np.tile(np.arange(3, dtype=np.int32), (recipe.num_crops, 1)), orders])
    full = video.fit(clip.frames, motion.height, motion.width, recipe.frame_fit)
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
    """Writes rows to a Parquet file, one row group each so that clips can be read one by one."""
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
