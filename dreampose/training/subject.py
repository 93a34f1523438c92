"""Finetuning on one person: UNet and adapter first, then the VAE's decoder (the paper's recipe).

Knows nothing of data sets or Ray. Every frozen part is run once, before the first step.
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from dreampose import augment, checkpoints, losses, poses, video
from dreampose.conditions import clip_tokens
from dreampose.config import Recipe, StageConfig
from dreampose.dataset import working_size
from dreampose.errors import InputError
from dreampose.generate import photo_body
from dreampose.latents import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.subjects import Photo, Subject
from dreampose.training import loop
from dreampose.training.denoising import denoising_step, make_batch
from dreampose.training.loop import Stage, StepReport
from dreampose.types import Clip
from dreampose.windows import windows

NUM_VIEWS = 16
"""Views of each photo that are encoded: the whole photo, then random crops."""

MAX_FRAMES = 32
"""Frames of a clip that are used, evenly spread."""

_ENCODE_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Views:
    """A subject's n photos in k views each, encoded: view 0 is the whole photo, others are crops.

    A photo's window repeats its one pose; a clip's frame has its own.
    """

    pixels: UInt8[np.ndarray, "n k H W 3"]
    latents: Float[Tensor, "n k c h w"]
    tokens: Float[Tensor, "n k s d"]
    poses: Float[Tensor, "n k p 2 h w"]

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
    pose_windows: Sequence[Float[np.ndarray, "p 2 _ _"]],
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
        boxes = augment.random_boxes(
            NUM_VIEWS,
            height=recipe.height,
            width=recipe.width,
            smallest=recipe.crop_scale,
            generator=generator,
        )
        for box in boxes * factor:
            pixels.append(augment.crop_frames(full, box, recipe.height, recipe.width)[0])
            cut = np.ascontiguousarray(augment.crop(maps, box))
            grids.append(poses.to_grid(cut, recipe.latent_size))
    codec, device = LatentCodec(vae=pipe.vae), pipe.vae.device
    latents: list[Tensor] = []
    tokens: list[Tensor] = []
    for start in range(0, len(pixels), _ENCODE_BATCH):
        images = video.to_model(np.stack(pixels[start : start + _ENCODE_BATCH])).to(device)
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
) -> list[Float[np.ndarray, "p 2 _ _"]]:
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
            photo_body(photo, *working_size(Clip(frames=photo[None], fps=1.0), recipe))
            for photo in photos
        ]
    if len(motions) != len(photos):
        raise InputError(
            f"motions must be one for each of {len(photos)} photos, got {len(motions)}"
        )
    return [np.repeat(motion.maps[:1], recipe.num_poses, axis=0) for motion in motions]


def clip_windows(
    clip: Clip, motion: poses.Motion, recipe: Recipe
) -> tuple[list[Photo], list[Float[np.ndarray, "p 2 _ _"]]]:
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


class SubjectStage(Stage):
    """Step 1: UNet and adapter on the subject's photos in their own poses."""

    def __init__(
        self, pipe: DreamPosePipeline, views: Views, *, config: StageConfig, subject: Subject
    ) -> None:
        """Takes UNet and adapter out of `pipe` for training."""
        super().__init__()
        # This memory layout is a sixth faster on CPUs, and what tensor cores want.
        self.unet = pipe.unet.requires_grad_(True).to(memory_format=torch.channels_last)
        self.adapter = pipe.adapter.requires_grad_(True)
        self._outer = (pipe,)
        self._views, self._config, self._subject = views, config, subject
        self._recipe = pipe.recipe

    def num_items(self, split: str) -> int:
        """Photos of the subject."""
        return self._views.num_photos if split == "train" else 0

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Views of these photos as targets; any photo, always in another view, as the condition."""
        assert split == "train"
        views, count = self._views, len(items)
        photos = generator.integers(views.num_photos, size=count)
        crops = generator.integers(views.num_views, size=count)
        whole = generator.random(count) >= self._config.crop_share
        target = np.where(whole, 0, crops)
        photo = (target + generator.integers(1, views.num_views, size=count)) % views.num_views
        return {
            "latents": views.latents[items, target],
            "poses": views.poses[items, target],
            "photo_latents": views.latents[photos, photo],
            "tokens": views.tokens[photos, photo],
            "seed": int(generator.integers(2**62)),
        }

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The denoising loss."""
        return denoising_step(
            self._outer[0],
            make_batch(batch),
            recipe=self._recipe,
            seed=batch["seed"],
            min_snr_gamma=self._config.min_snr_gamma,
        )

    def save(self, folder: Path) -> None:
        """Writes the subject's folder, so far without a decoder."""
        checkpoints.save_subject(
            folder, self._outer[0], self._subject, components=("unet", "adapter")
        )


class DecoderStage(Stage):
    """Step 2: the VAE's decoder, on windows of the photos' latents."""

    def __init__(
        self, pipe: DreamPosePipeline, views: Views, *, config: StageConfig, subject: Subject
    ) -> None:
        """Takes the decoder out of `pipe` for training."""
        super().__init__()
        pipe.vae.requires_grad_(False)
        self.decoder = pipe.vae.decoder.requires_grad_(True)
        if isinstance(pipe.vae, AutoencoderKL) and pipe.vae.post_quant_conv is not None:
            self.post_quant_conv = pipe.vae.post_quant_conv.requires_grad_(True)
        self._outer = (pipe,)
        self._views, self._config, self._subject = views, config, subject
        self._downscale = pipe.recipe.downscale

    def num_items(self, split: str) -> int:
        """Photos of the subject."""
        return self._views.num_photos if split == "train" else 0

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """A random window of a random view of each of these photos, as latents and as pixels."""
        assert split == "train"
        views, scale = self._views, self._downscale
        height, width = views.latents.shape[-2:]
        side = self._config.crop_size // scale
        rows, columns = (min(side, height), min(side, width)) if side else (height, width)
        latents: list[Tensor] = []
        pixels: list[np.ndarray] = []
        for item in items.tolist():
            view = int(generator.integers(views.num_views))
            top = int(generator.integers(height - rows + 1))
            left = int(generator.integers(width - columns + 1))
            latents.append(views.latents[item, view, :, top : top + rows, left : left + columns])
            pixels.append(
                views.pixels[item, view][
                    top * scale : (top + rows) * scale, left * scale : (left + columns) * scale
                ]
            )
        return {"latents": torch.stack(latents), "images": video.to_model(np.stack(pixels))}

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Reconstruction error of the decoded windows."""
        images = LatentCodec(vae=self._outer[0].vae).decode(batch["latents"])
        return losses.reconstruction_loss(
            images, batch["images"], edge_weight=self._config.edge_weight
        )

    def save(self, folder: Path) -> None:
        """Writes the subject's whole folder."""
        checkpoints.save_subject(folder, self._outer[0], self._subject)


def finetune_subject(
    pipe: DreamPosePipeline,
    photos: Sequence[Photo],
    out: str | Path,
    *,
    name: str,
    accelerator: Accelerator,
    motions: Sequence[poses.Motion] | None = None,
    clip: tuple[Clip, poses.Motion] | None = None,
    num_steps: int | None = None,
    num_vae_steps: int | None = None,
    seed: int = 0,
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 100,
) -> Iterator[StepReport]:
    """Finetunes a model on one person; run again, it goes on where it stood.

    The reports of both steps are numbered through; their `stage` is 'unet', then 'decoder'. The
    result is a folder for `DreamPosePipeline.load_subject`. While it runs, checkpoints lie beside
    it in `.NAME.training`.

    Args:
        pipe: the base model; left untouched.
        photos: of the subject, at least one; paired at random.
        out: folder of the result.
        name: of the subject.
        accelerator: device and precision.
        motions: a motion of one frame for each photo; `None` asks the pose estimator.
        clip: a short video of the subject and its motion, used beside the photos.
        num_steps: of UNet and adapter, instead of the recipe's.
        num_vae_steps: of the decoder, instead of the recipe's; 0 leaves it alone.
        seed: of crops and noise.
        resume: go on from the last checkpoint.
        stop: polled after each step; once true a checkpoint is written and the generator ends.
        checkpoint_every: steps between checkpoints.

    Raises:
        InputError: no photo, nobody in a photo, or `out` holds another subject.
    """
    if not photos:
        raise InputError("photos must be at least one, got none")
    out = Path(out)
    subject = checkpoints.describe(pipe, name, photos)
    if resume and out.exists():
        if checkpoints.read_subject(out) == subject:
            return
        raise InputError(f"out must be free or hold the same subject, got another in {str(out)!r}")
    recipe = pipe.recipe
    frames = list(photos)
    around = photo_windows(photos, recipe, motions)
    if clip is not None:
        more_frames, more_windows = clip_windows(*clip, recipe)
        frames, around = [*frames, *more_frames], [*around, *more_windows]
    tuned = _copied(pipe).to(accelerator.device)
    views = encode_views(tuned, frames, around, seed=seed)

    work = out.with_name(f".{out.name}.training")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    key = hashlib.sha256(json.dumps(asdict(subject)).encode()).hexdigest()[:16]
    plan = [
        ("unet", SubjectStage, recipe.subject_stage, num_steps),
        ("decoder", DecoderStage, recipe.subject_vae_stage, num_vae_steps),
    ]
    lengths = [_steps(config, steps) for _, _, config, steps in plan]
    done = 0
    for (label, kind, config, _), steps in zip(plan, lengths, strict=True):
        if not steps:
            continue
        for report in loop.run(
            kind(tuned, views, config=config, subject=subject),
            config=config,
            accelerator=accelerator,
            out=work / label,
            name=f"{key} seed={seed}",
            label=label,
            seed=seed,
            max_steps=steps,
            stop=stop,
            checkpoint_every=checkpoint_every,
            keep=1,
        ):
            yield replace(report, step=done + report.step, total=sum(lengths))
            if report.stopped:
                return
        done += steps
    if accelerator.is_main_process:
        changed = ("unet", "adapter") if lengths[0] else ()
        checkpoints.save_subject(
            out, tuned, subject, components=(*changed, "vae") if lengths[1] else changed
        )
        shutil.rmtree(work)
    accelerator.wait_for_everyone()


def _steps(config: StageConfig, steps: int | None) -> int:
    return config.num_steps if steps is None else steps


def _copied(pipe: DreamPosePipeline) -> DreamPosePipeline:
    parts = {
        name: copy.deepcopy(part) if isinstance(part, nn.Module) else part
        for name, part in pipe.components.items()
    }
    return DreamPosePipeline(**parts, recipe=pipe.config["recipe"])
