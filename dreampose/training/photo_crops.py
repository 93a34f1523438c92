"""Encoded crops of a subject's photos for finetuning."""

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
from dreampose.models.adapter import clip_tokens, surface_condition
from dreampose.models.subject import Photo
from dreampose.models.vae import LatentCodec, encode_batch_size
from dreampose.pipeline import DreamPosePipeline
from dreampose.surface.motion import PosedPhoto, warp_motion
from dreampose.types import Clip

NUM_VIEWS = 16
"""Number of views of each photo: the whole photo, then random crops."""

MAX_FRAMES = 32
"""Maximum number of evenly spaced frames of a clip."""

ENCODE_BATCH = 8
"""Maximum number of views per encoder batch."""


@dataclass(frozen=True, kw_only=True)
class PhotoCrops:
    """Encoded views of a subject's photos: view 0 is the whole photo, the others are crops.

    Attributes:
        pixels: 8-bit RGB of k views of n photos or frames.
        latents: scaled latents.
        tokens: `last_hidden_state` of the image encoder.
        poses: pose windows; the window of a photo repeats its pose.
        surface: surface condition, the other photos warped into each view; None for models
            without one.
    """

    pixels: UInt8[np.ndarray, "n k H W 3"]
    latents: Float[Tensor, "n k c h w"]
    tokens: Float[Tensor, "n k s d"]
    poses: Float[Tensor, "n k p u h w"]
    surface: Float[Tensor, "n k sc h w"] | None = None

    @property
    def num_photos(self) -> int:
        """Number of photos or frames."""
        return len(self.pixels)

    @property
    def num_views(self) -> int:
        """Number of views per photo."""
        return self.pixels.shape[1]


@torch.no_grad()
def encode_crops(
    pipe: DreamPosePipeline,
    frames: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    pose_windows: Sequence[Float[np.ndarray, "p u _ _"]],
    *,
    seed: int,
    warps: Sequence[UInt8[np.ndarray, "5 _ _"]] | None = None,
) -> PhotoCrops:
    """Crops frames and their pose windows, and encodes the crops with VAE and image encoder.

    Args:
        pipe: its VAE and image encoder are used.
        frames: of any sizes.
        pose_windows: of each frame, at the recipe's size or a multiple; frames are resized to it.
        seed: of the crops.
        warps: of the first frames, see `photo_warps`; the other frames have none.
    """
    recipe = pipe.recipe
    generator = np.random.default_rng(seed)
    pixels: list[np.ndarray] = []
    grids: list[Tensor] = []
    surfaces: list[Tensor] = []
    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    device = pipe.vae.device
    for index, (frame, maps) in enumerate(zip(frames, pose_windows, strict=True)):
        factor = maps.shape[2] // recipe.height
        full = video.fit(frame[None], maps.shape[2], maps.shape[3], recipe.frame_fit)
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
        if warps is None:
            continue
        if index < len(warps):
            planes = np.moveaxis(warps[index], 0, -1)[None]
            cuts = np.concatenate(
                [
                    np.concatenate(
                        [
                            augmentation.crop_frames(part, box, recipe.height, recipe.width)
                            for part in (planes[..., :3], planes[..., 2:])
                        ],
                        axis=-1,
                    )
                    for box in boxes * factor
                ]
            )
            warped = video.to_model(np.ascontiguousarray(cuts[..., :3])).to(device)
            sure = torch.from_numpy(cuts[..., 4:5].astype(np.float32) / 255).permute(0, 3, 1, 2)
            surfaces.append(
                surface_condition(codec, warped, sure.to(device), recipe.surface_detail)
                .float()
                .cpu()
            )
        else:
            surfaces.append(torch.zeros(NUM_VIEWS, recipe.surface_channels, *recipe.latent_size))
    latents: list[Tensor] = []
    tokens: list[Tensor] = []
    count = encode_batch_size(recipe.height, recipe.width, at_most=ENCODE_BATCH)
    for start in range(0, len(pixels), count):
        images = video.to_model(np.stack(pixels[start : start + count])).to(device)
        latents.append(codec.encode(images).float().cpu())
        tokens.append(clip_tokens(pipe.image_encoder, images, recipe.photo_fit).float().cpu())
    shape = (len(frames), NUM_VIEWS)
    return PhotoCrops(
        pixels=np.stack(pixels).reshape(*shape, recipe.height, recipe.width, 3),
        latents=torch.cat(latents).unflatten(0, shape),
        tokens=torch.cat(tokens).unflatten(0, shape),
        poses=torch.stack(grids).unflatten(0, shape),
        surface=torch.stack(surfaces) if surfaces else None,
    )


def photo_motions(
    photos: Sequence[Photo], recipe: Recipe, motions: Sequence[poses.Motion] | None = None
) -> list[poses.Motion]:
    """Pose of each photo, as a motion of one frame.

    Args:
        photos: of any sizes.
        recipe: of the model.
        motions: a motion of one frame for each photo; None estimates the poses.

    Raises:
        InputError: no body is found in a photo, or there is not one motion per photo.
    """
    if motions is None:
        motions = [
            photo_pose(
                photo, *working_size(Clip(frames=photo[None], fps=1.0), recipe), recipe.frame_fit
            )
            for photo in photos
        ]
    if len(motions) != len(photos):
        raise InputError(
            f"motions must be one for each of {len(photos)} photos, got {len(motions)}"
        )
    return list(motions)


def photo_windows(
    photos: Sequence[Photo], recipe: Recipe, motions: Sequence[poses.Motion] | None = None
) -> list[Float[np.ndarray, "p u _ _"]]:
    """Pose window of each photo: its pose, repeated; arguments and errors as `photo_motions`."""
    return [
        np.repeat(motion.maps[:1], recipe.num_poses, axis=0)
        for motion in photo_motions(photos, recipe, motions)
    ]


def photo_warps(
    photos: Sequence[Photo], motions: Sequence[poses.Motion]
) -> list[UInt8[np.ndarray, "5 _ _"]]:
    """Each photo's pose filled from the other photos, or from itself if it is the only one.

    Args:
        photos: of one subject, of any sizes.
        motions: of one frame for each photo.

    Returns:
        Planes as `dreampose.surface.motion.warp_motion` gives them, at the size of each motion.
    """
    found: list[np.ndarray] = []
    for index, motion in enumerate(motions):
        sources: list[PosedPhoto] = []
        for other, (photo, pose) in enumerate(zip(photos, motions, strict=True)):
            if other == index and len(photos) > 1:
                continue
            picture = video.fit(photo[None], motion.height, motion.width)[0]
            mask = poses.segment(picture) if pose.painted else None
            sources.append(PosedPhoto(picture=picture, pose=pose, mask=mask))
        found.append(warp_motion(sources, motion.between(0, 1))[0])
    return found


def clip_windows(
    clip: Clip, motion: poses.Motion, recipe: Recipe
) -> tuple[list[Photo], list[Float[np.ndarray, "p u _ _"]]]:
    """Selects at most `MAX_FRAMES` evenly spaced frames of a clip, with their pose windows.

    Args:
        clip: shows the subject.
        motion: one pose per frame of the clip.
        recipe: of the model.

    Returns:
        Frames, and the pose window of each.

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
