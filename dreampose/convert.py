"""Published DreamPose checkpoints as models of this package."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreampose import checkpoints, poses
from dreampose.config import Recipe, replace
from dreampose.diffusion import schedulers
from dreampose.diffusion.generation import photo_pose
from dreampose.errors import InputError
from dreampose.io import video, weights
from dreampose.models import stable_diffusion as bases
from dreampose.models.adapter import clip_tokens, pose_condition
from dreampose.models.subject import Photo
from dreampose.models.unet import Denoiser
from dreampose.models.vae import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.poses import Motion, parts
from dreampose.types import Conditions

ADAPTER_NAMES = {"vae2clip": "project", "linear1": "mix"}
"""Layers of the published adapter and their names in this project."""

PUBLISHED: Mapping[str, Any] = {
    "image_range": (-1.0, 1.0),
    "pose_range": (-1.0, 1.0),
    "photo_fit": "crop",
    "pose_resize": "nearest",
    "pose_kind": "densepose",
    "null_image": "black",
}
"""Fields of the recipe that the released weights were most probably trained with.

CLIP sees the centre square; pose maps are resized to the latent grid by nearest neighbour; a
dropped photo is black. The published repository normalised photos and poses to [-1, 1] until
21 April 2023, and its links to the weights are of 10 to 13 April. Later scripts keep both in [0, 1]
(`LATER_RANGE`): weights finetuned with these need that range.

Two things of the published sampler are not repeated: it gives the VAE photos in [0, 255], and it
stretches every frame by its own minimum and maximum.
"""

LATER_RANGE = (0.0, 1.0)
"""Range of photos and poses in published scripts from 21 April 2023 on."""

TIMESTEPS = (150, 350, 550, 750)
"""Noise levels at which `compare_ranges` measures."""


def import_model(
    base: str | Path,
    *,
    unet: str | Path | None = None,
    adapter: str | Path | None = None,
    vae: str | Path | None = None,
    image_encoder: str | Path | None = None,
    revision: str | None = None,
    config: str | Path | None = None,
    height: int | None = None,
    width: int | None = None,
    image_range: tuple[float, float] | None = None,
    pose_range: tuple[float, float] | None = None,
) -> tuple[DreamPosePipeline, str]:
    """Builds a model from published weights and their base, or from the base alone.

    Args:
        base: Stable Diffusion 1.x; see `dreampose.models.stable_diffusion.read`.
        unet: `unet_epoch_N.pth`; requires `adapter`.
        adapter: `adapter_N.pth`; requires `unet`.
        vae: `vae_N.pth` with a finetuned decoder; default: the VAE of the base.
        image_encoder: folder or hub id of CLIP; see `dreampose.models.stable_diffusion.read`.
        revision: revision of the base on the hub.
        config: architecture of a base in a single file.
        height: frame height in pixels; default: that of the adapter, else that of the base.
        width: frame width in pixels; default: as for `height`.
        image_range: values of black and white; default: `PUBLISHED`.
        pose_range: values of 0 and 1 of a pose map; default: `PUBLISHED`.

    Returns:
        The model, and a description of its base.

    Raises:
        InputError: a file is missing or damaged, or does not fit the base; the message names
            missing and unknown tensors and those of another shape.
    """
    if (unet is None) != (adapter is None):
        raise InputError(
            "unet and adapter must be given together, because they were trained together, got "
            f"only {'the adapter' if unet is None else 'the unet'}"
        )
    files = {"unet": unet, "adapter": adapter, "vae": vae}
    values = {
        name: _NAMES[name](weights.unwrap(weights.read(path, name), name))
        for name, path in files.items()
        if path is not None
    }
    parts = bases.read(base, image_encoder, revision=revision, config=config)
    recipe = bases.recipe_of(parts, height=height, width=width)
    if values:
        ranges = {"image_range": image_range, "pose_range": pose_range}
        stated = {name: value for name, value in ranges.items() if value is not None}
        recipe = replace(recipe, **{**PUBLISHED, **stated})
    if "adapter" in values and height is None and width is None:
        recipe = _sized(recipe, values["adapter"])
    pipe = checkpoints.assemble(recipe, parts.vae, parts.image_encoder, parts.unet)
    for name, found in values.items():
        path = files[name]
        assert path is not None
        weights.fit(getattr(pipe, name), found, name, path)
    return pipe, parts.source


@torch.no_grad()
def compare_ranges(
    pipe: DreamPosePipeline, photo: Photo, motion: Motion, *, seed: int = 0
) -> dict[tuple[float, float], float]:
    """Denoising loss of a photo in its own pose, for photos and poses in [-1, 1] and in [0, 1].

    The range with the smaller loss is probably the one that the weights were trained with.

    Args:
        pipe: imported weights; left untouched.
        photo: of a whole person.
        motion: its pose, one frame, at the size of the model's frames or a multiple.
        seed: of the noise, the same for both ranges.

    Returns:
        Mean squared error of the prediction by range, over `TIMESTEPS`.
    """
    recipe = pipe.recipe
    losses: dict[tuple[float, float], float] = {}
    fitted = video.fit(photo[None], recipe.height, recipe.width, recipe.frame_fit)
    images = video.to_model(fitted).to(pipe.execution_device)
    grid = poses.to_grid(motion.maps, recipe.latent_size, recipe.pose_resize, recipe.pose_detail)
    window = grid[:1].float().expand(recipe.num_poses, -1, -1, -1)[None].to(images.device)
    tokens = clip_tokens(pipe.image_encoder, images, recipe.photo_fit)
    for limits in ((-1.0, 1.0), LATER_RANGE):
        latents = LatentCodec(vae=pipe.vae, image_range=limits).encode(images)
        conditions = Conditions(
            tokens=pipe.adapter(tokens.to(pipe.adapter.dtype), latents),
            poses=pose_condition(window, limits),
        )
        generator = torch.Generator().manual_seed(seed)
        errors: list[float] = []
        for step in TIMESTEPS:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            times = torch.tensor([step], device=latents.device)
            noisy = pipe.scheduler.add_noise(latents, noise, times)
            target = schedulers.training_target(pipe.scheduler, latents, noise, times)
            guess = Denoiser(unet=pipe.unet)(noisy, times[0], conditions)
            errors.append(float((guess - target).square().mean()))
        losses[limits] = sum(errors) / len(errors)
    return losses


def measured_photo(recipe: Recipe, path: str | Path | None = None) -> tuple[Photo, Motion]:
    """A photo and its pose for `compare_ranges`: of a file, or of a rendered person.

    The pose of a file is painted from BlazePose's points; the rendered person's is exact.

    Args:
        recipe: sizes of frames.
        path: of the photo.

    Raises:
        InputError: the photo cannot be read, or shows no body.
    """
    if path is not None:
        photo = video.read_photo(path)
        return photo, photo_pose(photo, recipe.height, recipe.width, recipe.frame_fit)
    # Imported here because rendering is needed by this function alone.
    from dreampose.synthetic.clip import render_clip
    from dreampose.synthetic.identity import identity

    clip = render_clip(
        identity(0, "test"), motion="walk", num_frames=1, height=recipe.height, width=recipe.width
    )
    maps = parts.to_maps(clip.parts, clip.uv.transpose(0, 3, 1, 2), recipe.pose_channels)
    motion = Motion(
        maps=maps,
        joints=np.zeros((1, 1, 4), np.float32),
        confidence=np.ones(1, np.float32),
        fps=1.0,
        estimator="catwalk",
    )
    return clip.frames[0], motion


def adapter_names(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of the published adapter."""
    renamed: dict[str, Tensor] = {}
    for key, value in values.items():
        layer, _, rest = key.partition(".")
        renamed[f"{ADAPTER_NAMES.get(layer, layer)}.{rest}" if rest else key] = value
    return renamed


def _sized(recipe: Recipe, adapter: Mapping[str, Tensor]) -> Recipe:
    """Recipe with the frame size of an adapter, if it has the paper's aspect ratio of 5:4.

    The adapter's projection has (h/2) (w/2) inputs for a latent grid of h x w.
    """
    weight = adapter.get("project.weight")
    if weight is None or weight.ndim != 2:
        return recipe
    cells = weight.shape[1]
    rows, columns = recipe.latent_size
    if (rows // 2) * (columns // 2) == cells or cells % 20:
        return recipe
    unit = math.isqrt(cells // 20)
    if 20 * unit**2 != cells:
        return recipe
    side = 2 * unit * recipe.downscale
    return replace(recipe, height=5 * side, width=4 * side)


_NAMES = {"unet": dict, "adapter": adapter_names, "vae": bases.modern_names}
