"""The model as a diffusers pipeline: its parts, its folder, one call from photo to frames.

Knows nothing of training or Ray.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import BaseOutput
from jaxtyping import UInt8
from PIL import Image
from torch import nn
from transformers import CLIPVisionModel

from dreampose.config import Recipe
from dreampose.diffusion.generation import prepare, render_frames
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import ImageAdapter
from dreampose.models.subject import MODELS, Photo, Subject, subject_modules
from dreampose.models.vae import VAE
from dreampose.poses import Motion
from dreampose.types import Scheduler

PhotoInput = str | Path | Image.Image | np.ndarray

OFFLOADING = ("none", "model", "sequential")
"""Ways of keeping weights in the CPU's memory."""

_TILE = 256
"""Pixels of a tile's side."""


@dataclass
class DreamPoseOutput(BaseOutput):
    """A rendered video.

    frames: list of PIL images, or with output_type='np' an array (t H W 3) of 8-bit RGB.
    fps: frames per second of the motion.
    """

    frames: list[Image.Image] | UInt8[np.ndarray, "t H W 3"]
    fps: float


class DreamPosePipeline(DiffusionPipeline):
    """One photo of a person and a motion become a video of that person in that motion.

    The folder is a diffusers pipeline folder, safetensors only; the recipe stands in its
    `model_index.json`.
    """

    model_cpu_offload_seq = "image_encoder->adapter->unet->vae"

    vae: VAE
    image_encoder: CLIPVisionModel
    adapter: ImageAdapter
    unet: UNet2DConditionModel
    scheduler: Scheduler

    def __init__(
        self,
        vae: VAE,
        image_encoder: CLIPVisionModel,
        adapter: ImageAdapter,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin | Scheduler,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        """Puts the parts together.

        Args:
            vae: an `AutoencoderKL` or `AutoencoderTiny`.
            image_encoder: its `last_hidden_state` is the photo's tokens.
            adapter: mixes the photo's latents into them.
            unet: widened by the pose window's channels.
            scheduler: the noise process of the weights.
            recipe: `Recipe.to_dict()`.

        Raises:
            InputError: the recipe is missing or the UNet was not widened for it.
        """
        super().__init__()
        if recipe is None:
            raise InputError("recipe must be given, got none in the model's model_index.json")
        self.register_modules(
            vae=vae, image_encoder=image_encoder, adapter=adapter, unet=unet, scheduler=scheduler
        )
        # diffusers would record the defining module, which then could never move.
        self.register_to_config(adapter=("dreampose", "ImageAdapter"), recipe=dict(recipe))
        expected = self.recipe.unet_channels
        actual = unet.config["in_channels"]
        if actual != expected:
            raise InputError(f"unet must have {expected} input channels, got {actual}")
        self._subject: Subject | None = None
        self._base_modules: dict[str, nn.Module] = {}
        self._offloading: tuple[str, torch.device] | None = None

    @property
    def execution_device(self) -> torch.device:
        """Where the parts compute, also those that lie elsewhere meanwhile (`offload`)."""
        return self._execution_device

    @property
    def recipe(self) -> Recipe:
        """Sizes and numbers of the model."""
        return Recipe.from_dict(self.config["recipe"])

    @property
    def subject(self) -> Subject | None:
        """Whose finetuned weights are loaded; None is the base model."""
        return self._subject

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "DreamPosePipeline":
        """Loads a folder or hub id; float32 unless `dtype` says otherwise, never a pickle."""
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = torch.float32
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)

    def load_subject(self, folder: str | Path) -> None:
        """Puts a subject's finetuned weights in place of the base model's.

        A subject that is loaded already is unloaded first.

        Raises:
            InputError: the folder is no subject's, or of another base model.
        """
        self.unload_subject()
        with self._in_one_place():
            subject, modules = subject_modules(self, folder)
            self._base_modules = {name: getattr(self, name) for name in modules}
            self._replace(modules)
        self._subject = subject

    def unload_subject(self) -> None:
        """Puts the base model's weights back; nothing happens when no subject is loaded."""
        if self._base_modules:
            with self._in_one_place():
                self._replace(self._base_modules)
        self._base_modules, self._subject = {}, None

    def with_subject(self, folder: str | Path) -> "DreamPosePipeline":
        """Another pipeline with a subject's weights, sharing all other parts with this one.

        Raises:
            InputError: the folder is no subject's, or of another base model; or parts of this
                pipeline are offloaded.
        """
        if self._offloading:
            raise InputError(
                f"offload must be 'none' where parts are shared, got {self._offloading[0]!r}"
            )
        subject, modules = subject_modules(self, folder)
        parts: dict[str, Any] = {**self.components, **modules}
        pipe = DreamPosePipeline(**parts, recipe=self.config["recipe"])
        pipe._subject = subject
        return pipe

    def offload(self, how: str, device: torch.device | str = "cuda") -> None:
        """Keeps weights in the CPU's memory and brings them to the device when they are needed.

        Args:
            how: 'none'; 'model' brings one part at a time, which costs little time; 'sequential'
                one layer at a time, which needs least memory and is many times slower.
            device: that computes.

        Raises:
            InputError: `how` is none of these.
        """
        if how not in OFFLOADING:
            raise InputError(f"offload must be one of {', '.join(OFFLOADING)}, got {how!r}")
        self.remove_all_hooks()
        self._offloading = None if how == "none" else (how, torch.device(device))
        if how == "none":
            self.to(device)
        elif how == "model":
            self.enable_model_cpu_offload(device=device)
        else:
            self.to("cpu")
            for name in MODELS:
                # diffusers' own method does the same, but not on a CPU, where it can be tested.
                cpu_offload(getattr(self, name), torch.device(device))

    def split_decoding(self, *, slicing: bool = False, tiling: bool = False) -> None:
        """Makes the VAE work on less at a time.

        Args:
            slicing: on one image of a batch after the other; the images stay the same.
            tiling: on overlapping tiles of 256 pixels, blended: images differ a little, since each
                tile is normalised by itself.
        """
        self.vae.use_slicing = slicing
        self.vae.use_tiling = tiling
        # Not what the VAE's configuration says: it knows its training's size, or nothing at all.
        self.vae.tile_sample_min_size = _TILE
        self.vae.tile_latent_min_size = _TILE // self.recipe.downscale

    @contextlib.contextmanager
    def _in_one_place(self) -> Generator[None, None, None]:
        """All weights on the CPU for a while, where parts are offloaded, so that they are seen."""
        if self._offloading is None:
            yield
            return
        how, device = self._offloading
        self.remove_all_hooks()
        try:
            yield
        finally:
            self.offload(how, device)

    def _replace(self, modules: Mapping[str, nn.Module]) -> None:
        for name, module in modules.items():
            setattr(self, name, module)

    def __call__(
        self,
        photo: PhotoInput | Sequence[PhotoInput],
        motion: Motion | str | Path,
        *,
        preset: str = "exact",
        scheduler: str | None = None,
        scheduler_kwargs: Mapping[str, Any] | None = None,
        num_inference_steps: int | None = None,
        image_scale: float | None = None,
        pose_scale: float | None = None,
        seed: int = 0,
        generator: torch.Generator | None = None,
        chunk_size: int = 8,
        align: bool = True,
        check_subject: bool = True,
        join_branches: bool = True,
        size: tuple[int, int] | None = None,
        output_type: str = "pil",
        callback: Callable[[int, int], None] | None = None,
    ) -> DreamPoseOutput:
        """Renders the motion with the person of the photo.

        Args:
            photo: path, PIL image or array (H W 3) of 8-bit RGB; or several, of one person.
            motion: a motion or the path of a motion file.
            preset: 'exact' (the paper's sampler), 'balanced' or 'fast'.
            scheduler: class name of a diffusers scheduler, instead of the preset's.
            scheduler_kwargs: options of the scheduler.
            num_inference_steps: instead of the preset's.
            image_scale: guidance scale s_I, at least 0; default: the recipe's.
            pose_scale: guidance scale s_p, at least 0; default: the recipe's.
            seed: of the start noise and all other draws; equal seeds give equal videos.
            generator: a CPU generator, instead of `seed`; it advances.
            chunk_size: frames per batch, at least 1; memory grows with it, frames do not change
                beyond float rounding.
            align: move and scale the motion onto the photo's body.
            check_subject: warn when finetuned weights meet another person's photo.
            join_branches: compute the branches of guidance as one batch.
            size: height and width of the frames, multiples of 8 in the motion's aspect; default:
                the model's.
            output_type: 'pil' or 'np'.
            callback: called after each step with (steps made, steps in all), all chunks counted.

        Raises:
            InputError: an argument is out of its range or of the wrong kind.
        """
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        if output_type not in ("pil", "np"):
            raise InputError(f"output_type must be 'pil' or 'np', got {output_type!r}")
        if isinstance(motion, str | Path):
            motion = Motion.load(motion)
        request = prepare(
            self,
            read_photos(photo),
            motion,
            preset=preset,
            scheduler=scheduler,
            scheduler_kwargs=scheduler_kwargs,
            num_inference_steps=num_inference_steps,
            image_scale=image_scale,
            pose_scale=pose_scale,
            seed=seed,
            generator=generator,
            align=align,
            check_subject=check_subject,
            size=size,
        )
        starts = range(0, request.num_frames, chunk_size)
        total = len(starts) * request.num_model_calls
        chunks: list[np.ndarray] = []
        progress_bar: Any = self.progress_bar
        with progress_bar(total=total) as bar:
            made = itertools.count(1)

            def advance(_: int, __: int) -> None:
                bar.update()
                if callback is not None:
                    callback(next(made), total)

            for start in starts:
                indices = range(start, min(start + chunk_size, request.num_frames))
                chunks.append(
                    render_frames(
                        self, request, indices, callback=advance, join_branches=join_branches
                    )
                )
        self.maybe_free_model_hooks()
        frames = np.concatenate(chunks)
        if output_type == "np":
            return DreamPoseOutput(frames=frames, fps=request.fps)
        return DreamPoseOutput(frames=[Image.fromarray(f) for f in frames], fps=request.fps)


def read_photos(photo: PhotoInput | Sequence[PhotoInput]) -> list[Photo]:
    """One or several photos, of any accepted kind, as arrays (H W 3) of 8-bit RGB.

    Raises:
        InputError: a path cannot be read, or an array has another shape or type.
    """
    if not isinstance(photo, str | Path | Image.Image | np.ndarray):
        return [single for item in photo for single in read_photos(item)]
    if isinstance(photo, str | Path):
        return [video.read_photo(photo)]
    if isinstance(photo, Image.Image):
        return [np.array(photo.convert("RGB"))]
    if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3:
        raise InputError(
            f"photo must be an array (H, W, 3) of uint8, got {photo.shape} of {photo.dtype}"
        )
    return [photo]
