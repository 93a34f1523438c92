"""What finetuning sees of a person: photos cropped in many ways, encoded once by the frozen parts.

Knows nothing of losses or of the training loop.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreampose import poses
from dreampose.config import Recipe
from dreampose.data import augmentation, working_size
from dreampose.data.windows import windows
from dreampose.diffusion.generation import photo_pose
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import clip_tokens
from dreampose.models.subject import Photo
from dreampose.models.vae import LatentCodec, encode_batch_size
from dreampose.pipeline import DreamPosePipeline
from dreampose.types import Clip

NUM_VIEWS = 16
"""Views of each photo that are encoded: the whole photo, then random crops."""

MAX_FRAMES = 32
"""Frames of a clip that are used, evenly spread."""

ENCODE_BATCH = 8
"""Views encoded together at most."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """A subject's n photos in k views each, encoded: view 0 is the whole photo, others are crops.

    A photo's window repeats its one pose; a clip's frame has its own.
    """

    pixels: UInt8[np.ndarray, "n k H W 3"]
    latents: Float[Tensor, "n k c h w"]
    tokens: Float[Tensor, "n k s d"]
    poses: Float[Tensor, "n k p u h w"]

    @property
    def num_photos(self) -> int:
        """Number of photos or frames."""
        return len(self.pixels)

    @property
    def num_views(self) -> int:
        """Number of views of each."""
        return self.pixels.shape[1]


@torch.no_grad()
def encode_views(
    pipe: DreamPosePipeline,
    frames: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    pose_windows: Sequence[Float[np.ndarray, "p u _ _"]],
    *,
    seed: int,
) -> Views:
    """Crops each frame and its poses alike, and runs the frozen parts on every crop.

    Args:
        pipe: its VAE and image encoder encode.
        frames: of any sizes.
        pose_windows: of each frame, at the recipe's size or a multiple; the frame is fitted to it.
        seed: of the crops.
    """
    recipe = pipe.recipe
    generator = np.random.default_rng(seed)
    pixels: list[np.ndarray] = []
    grids: list[Tensor] = []
    for frame, maps in zip(frames, pose_windows, strict=True):
        factor = maps.shape[2] // recipe.height
        full = video.fit(frame[None], *maps.shape[2:])
        boxes = augmentation.random_boxes(
            NUM_VIEWS,
            height=recipe.height,
            width=recipe.width,
            smallest=recipe.crop_scale,
            generator=generator,
        )
        for box in boxes * factor:
            pixels.append(augmentation.crop_frames(full, box, recipe.height, recipe.width)[0])
            cut = np.ascontiguousarray(augmentation.crop(maps, box))
            grids.append(
                poses.to_grid(cut, recipe.latent_size, recipe.pose_resize, recipe.pose_detail)
            )
    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    device = pipe.vae.device
    latents: list[Tensor] = []
    tokens: list[Tensor] = []
    count = encode_batch_size(recipe.height, recipe.width, at_most=ENCODE_BATCH)
    for start in range(0, len(pixels), count):
        images = video.to_model(np.stack(pixels[start : start + count])).to(device)
        latents.append(codec.encode(images).float().cpu())
        tokens.append(clip_tokens(pipe.image_encoder, images, recipe.photo_fit).float().cpu())
    shape = (len(frames), NUM_VIEWS)
    return Views(
        pixels=np.stack(pixels).reshape(*shape, recipe.height, recipe.width, 3),
        latents=torch.cat(latents).unflatten(0, shape),
        tokens=torch.cat(tokens).unflatten(0, shape),
        poses=torch.stack(grids).unflatten(0, shape),
    )


def photo_windows(
    photos: Sequence[Photo], recipe: Recipe, motions: Sequence[poses.Motion] | None = None
) -> list[Float[np.ndarray, "p u _ _"]]:
    """The pose window of each photo: its own pose, repeated.

    Args:
        photos: of any sizes.
        recipe: of the model.
        motions: one motion of one frame for each photo; `None` asks the pose estimator.

    Raises:
        InputError: nobody is in a photo, or photos and motions differ in number.
    """
    if motions is None:
        motions = [
            photo_pose(photo, *working_size(Clip(frames=photo[None], fps=1.0), recipe))
            for photo in photos
        ]
    if len(motions) != len(photos):
        raise InputError(
            f"motions must be one for each of {len(photos)} photos, got {len(motions)}"
        )
    return [np.repeat(motion.maps[:1], recipe.num_poses, axis=0) for motion in motions]


def clip_windows(
    clip: Clip, motion: poses.Motion, recipe: Recipe
) -> tuple[list[Photo], list[Float[np.ndarray, "p u _ _"]]]:
    """At most `MAX_FRAMES` frames of a clip of the subject, with their pose windows.

    Raises:
        InputError: clip and motion differ in length.
    """
    if len(clip.frames) != motion.num_frames:
        raise InputError(
            f"motion must have a pose for each of {len(clip.frames)} frames, "
            f"got {motion.num_frames}"
        )
    spread = np.linspace(0, motion.num_frames - 1, MAX_FRAMES).round().astype(np.int64)
    chosen = np.unique(spread)
    around = windows(motion.num_frames, recipe.num_poses)[chosen]
    return [clip.frames[index] for index in chosen], [motion.maps[window] for window in around]
