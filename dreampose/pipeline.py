"""The model as a diffusers pipeline."""

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.utils import BaseOutput
from jaxtyping import Float, UInt8
from PIL import Image
from torch import nn
from transformers import CLIPVisionModel

from dreampose.config import Recipe
from dreampose.diffusion.generation import prepare, render_frames
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import ImageAdapter
from dreampose.models.refiner import Refiner
from dreampose.models.subject import MODELS, Photo, Subject, subject_modules
from dreampose.models.vae import VAE
from dreampose.poses import Motion
from dreampose.surface.motion import backed_share
from dreampose.types import Scheduler

PhotoInput = str | Path | Image.Image | np.ndarray

OFFLOADING = ("none", "model", "sequential")
"""Modes of `DreamPosePipeline.offload`."""

_TILE = 256
"""Side of a VAE tile in pixels."""


@dataclass
class DreamPoseOutput(BaseOutput):
    """A rendered video.

    Attributes:
        frames: list of PIL images, or an array (t H W 3) of 8-bit RGB for output_type='np'.
        fps: frames per second of the motion.
        backed: share of the visible body that a photo backs, in [0, 1], for each frame; None for
            models without a surface condition.
    """

    frames: list[Image.Image] | UInt8[np.ndarray, "t H W 3"]
    fps: float
    backed: Float[np.ndarray, " t"] | None = None


class DreamPosePipeline(DiffusionPipeline):
    """Animates a photo of a subject with a motion.

    Saved as a diffusers pipeline folder with safetensors weights; `model_index.json` contains the
    recipe.
    """

    model_cpu_offload_seq = "image_encoder->adapter->unet->vae->refiner"

    vae: VAE
    image_encoder: CLIPVisionModel
    adapter: ImageAdapter
    unet: UNet2DConditionModel
    scheduler: Scheduler
    refiner: Refiner | None

    _optional_components: ClassVar[list[str]] = ["refiner"]

    def __init__(
        self,
        vae: VAE,
        image_encoder: CLIPVisionModel,
        adapter: ImageAdapter,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin | Scheduler,
        recipe: Mapping[str, Any] | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        """Combines the components of a model.

        Args:
            vae: an `AutoencoderKL` or `AutoencoderTiny`.
            image_encoder: its `last_hidden_state` gives the tokens of a photo.
            adapter: mixes the photo's latents into the tokens.
            unet: with input channels for latents and pose window.
            scheduler: the noise schedule the weights were trained with.
            recipe: `Recipe.to_dict()`.
            refiner: makes frames of decoded pictures and the warped photo, where the recipe has
                one.

        Raises:
            InputError: the recipe is missing, the UNet has another number of input channels, or
                the refiner is missing or not in the recipe.
        """
        super().__init__()
        if recipe is None:
            raise InputError("model_index.json must contain a recipe, got none")
        self.register_modules(
            vae=vae,
            image_encoder=image_encoder,
            adapter=adapter,
            unet=unet,
            scheduler=scheduler,
            refiner=refiner,
        )
        # diffusers would record the module that defines the class, which could then never move.
        self.register_to_config(adapter=("dreampose", "ImageAdapter"), recipe=dict(recipe))
        if refiner is not None:
            self.register_to_config(refiner=("dreampose", "Refiner"))
        if (refiner is None) != (self.recipe.refiner is None):
            raise InputError(
                "refiner must be given exactly where the recipe has one, got "
                f"{'none' if refiner is None else 'one'} for recipe.refiner = "
                f"{self.recipe.refiner}"
            )
        expected = self.recipe.unet_channels
        actual = unet.config["in_channels"]
        if actual != expected:
            raise InputError(f"unet must have {expected} input channels, got {actual}")
        self._subject: Subject | None = None
        self._base_modules: dict[str, nn.Module] = {}
        self._offloading: tuple[str, torch.device] | None = None

    @property
    def execution_device(self) -> torch.device:
        """Device that computes, also while weights are offloaded to the CPU."""
        return self._execution_device

    @property
    def recipe(self) -> Recipe:
        """Configuration of the model."""
        return Recipe.from_dict(self.config["recipe"])

    @property
    def subject(self) -> Subject | None:
        """Subject whose finetuned weights are loaded; None for the base model."""
        return self._subject

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> "DreamPosePipeline":
        """Loads a model from a folder or hub id, from safetensors files only.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            **kwargs: of `DiffusionPipeline.from_pretrained`; `dtype` is float32 by default.
        """
        if "dtype" not in kwargs and "torch_dtype" not in kwargs:
            kwargs["dtype"] = torch.float32
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(str(pretrained_model_name_or_path), **kwargs)

    def load_subject(self, folder: str | Path) -> None:
        """Replaces the base model's weights by those finetuned on a subject.

        A subject loaded before is unloaded first.

        Raises:
            InputError: the folder is not a subject folder, or belongs to another base model.
        """
        self.unload_subject()
        with self._hooks_removed():
            subject, modules = subject_modules(self, folder)
            self._base_modules = {name: getattr(self, name) for name in modules}
            self._replace(modules)
        self._subject = subject

    def unload_subject(self) -> None:
        """Restores the base model's weights; does nothing if no subject is loaded."""
        if self._base_modules:
            with self._hooks_removed():
                self._replace(self._base_modules)
        self._base_modules, self._subject = {}, None

    def with_subject(self, folder: str | Path) -> "DreamPosePipeline":
        """Makes a pipeline with a subject's weights that shares all other components with this one.

        Raises:
            InputError: the folder is not a subject folder, or belongs to another base model; or
                weights of this pipeline are offloaded.
        """
        if self._offloading:
            raise InputError(
                f"offload must be 'none' to share components, got {self._offloading[0]!r}"
            )
        subject, modules = subject_modules(self, folder)
        parts: dict[str, Any] = {**self.components, **modules}
        pipe = DreamPosePipeline(**parts, recipe=self.config["recipe"])
        pipe._subject = subject
        return pipe

    def offload(self, how: str, device: torch.device | str = "cuda") -> None:
        """Keeps weights in CPU memory and moves them to the device when they are used.

        Args:
            how: 'none'; 'model' moves one component at a time, which is almost as fast;
                'sequential' one layer at a time, which needs least memory but is many times slower.
            device: that computes.

        Raises:
            InputError: `how` is none of the three.
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
            for name in (*MODELS, *(["refiner"] if self.refiner is not None else [])):
                # As enable_sequential_cpu_offload, which refuses a CPU as device (used by tests).
                cpu_offload(getattr(self, name), torch.device(device))

    def split_decoding(self, *, slicing: bool = False, tiling: bool = False) -> None:
        """Makes the VAE process smaller pieces, which needs less memory.

        Args:
            slicing: one image of a batch at a time; the images do not change.
            tiling: overlapping tiles of 256 pixels, blended; the images change slightly because
                each tile is normalised on its own.
        """
        self.vae.use_slicing = slicing
        self.vae.use_tiling = tiling
        # diffusers derives the tile size from the VAE's `sample_size`, which is often not set.
        self.vae.tile_sample_min_size = _TILE
        self.vae.tile_latent_min_size = _TILE // self.recipe.downscale

    @contextlib.contextmanager
    def _hooks_removed(self) -> Generator[None, None, None]:
        """Removes the hooks of offloading temporarily, which hide weights; all are on the CPU."""
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
        photo_poses: Sequence[Motion] | None = None,
        upscale: int | None = None,
        output_type: str = "pil",
        callback: Callable[[int, int], None] | None = None,
    ) -> DreamPoseOutput:
        """Renders a video of the subject in the photo performing the motion.

        Args:
            photo: path, PIL image or array (H W 3) of 8-bit RGB; or several of one subject.
            motion: a motion or the path of a motion file.
            preset: 'exact' (the paper's sampler), 'balanced' or 'fast'.
            scheduler: class name of a diffusers scheduler; default: the preset's.
            scheduler_kwargs: options of the scheduler.
            num_inference_steps: at least 1; default: the preset's.
            image_scale: guidance scale s_I, at least 0; default: the recipe's.
            pose_scale: guidance scale s_p, at least 0; default: the recipe's.
            seed: of all randomness; equal seeds give equal videos.
            generator: a CPU generator used instead of `seed`; its state advances.
            chunk_size: frames per batch, at least 1; larger chunks need more memory, and frames
                change only by float rounding.
            align: move and scale the motion to the body in the photo.
            check_subject: warn if the photo does not show the subject whose weights are loaded.
            join_branches: compute the guidance branches as one batch.
            size: height and width of the frames, multiples of 8 with the aspect ratio of the
                motion; default: the model's.
            photo_poses: poses of the photos, each a motion of one frame, from the estimator that
                the motion is from; default: BlazePose's.
            upscale: size of the rendered frames over `size`, for models with a refiner; default:
                the recipe's.
            output_type: 'pil' or 'np'.
            callback: called after each model call with (calls made, total calls of all chunks).

        Raises:
            InputError: an argument is out of range or of the wrong type.
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
            photo_poses=photo_poses,
            upscale=upscale,
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
        return DreamPoseOutput(
            frames=frames if output_type == "np" else [Image.fromarray(f) for f in frames],
            fps=request.fps,
            backed=None if request.warps is None else backed_share(request.warps.numpy()),
        )


def read_photos(photo: PhotoInput | Sequence[PhotoInput]) -> list[Photo]:
    """Converts one or several photos to arrays (H W 3) of 8-bit RGB.

    Raises:
        InputError: a file cannot be read, or an array has another shape or type.
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
