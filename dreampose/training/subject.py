"""Finetuning on photos of one subject."""

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dreampose import checkpoints, poses
from dreampose.config import NO_SAVINGS, Recipe, Savings, StageConfig
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models import lora
from dreampose.models.subject import Photo, Subject
from dreampose.models.vae import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.training import trainer
from dreampose.training.base_stage import denoising_step, encode_black_photos, make_batch
from dreampose.training.photo_crops import (
    PhotoCrops,
    clip_windows,
    encode_crops,
    photo_motions,
    photo_warps,
    photo_windows,
)
from dreampose.training.reconstruction import ReconstructionLoss
from dreampose.training.stage import Stage, StepReport
from dreampose.types import Clip

METHODS = ("full", "lora")


class SubjectStage(Stage):
    """First step: trains UNet and adapter on the subject's photos in their own poses."""

    def __init__(
        self, pipe: DreamPosePipeline, views: PhotoCrops, *, config: StageConfig, subject: Subject
    ) -> None:
        """Prepares UNet and adapter of `pipe` for training: all weights, or LoRA layers only."""
        super().__init__()
        self.unet, self.adapter = pipe.unet, pipe.adapter
        if subject.method == "full":
            self.requires_grad_(True)
        # channels_last is a sixth faster on CPUs and preferred by tensor cores.
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._outer = (pipe,)
        self._black = encode_black_photos(pipe, pipe.recipe)
        self._views, self._config, self._subject = views, config, subject
        self._recipe = pipe.recipe

    def num_items(self, split: str) -> int:
        """Photos of the subject."""
        return self._views.num_photos if split == "train" else 0

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Samples views of these photos as targets, and another view of any photo as condition."""
        assert split == "train"
        views, count = self._views, len(items)
        photos = generator.integers(views.num_photos, size=count)
        crops = generator.integers(views.num_views, size=count)
        whole = generator.random(count) >= self._config.crop_share
        target = np.where(whole, 0, crops)
        photo = (target + generator.integers(1, views.num_views, size=count)) % views.num_views
        batch: dict[str, Any] = {}
        if views.surface is not None:
            # Half without: a photo warped onto itself would else be copied.
            shown = torch.from_numpy(generator.random(count) < 0.5)[:, None, None, None]
            batch["surface"] = views.surface[items, target] * shown
        return batch | {
            "latents": views.latents[items, target],
            "poses": views.poses[items, target],
            "photo_latents": views.latents[photos, photo],
            "tokens": views.tokens[photos, photo],
            "seed": int(generator.integers(2**62)),
        }

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Computes the denoising loss."""
        return denoising_step(
            self._outer[0],
            make_batch(batch),
            recipe=self._recipe,
            seed=batch["seed"],
            min_snr_gamma=self._config.min_snr_gamma,
            offset_noise=self._config.offset_noise,
            black=self._black,
        )

    def save(self, folder: Path) -> None:
        """Writes the subject folder without the decoder."""
        checkpoints.save_subject(
            folder, self._outer[0], self._subject, components=("unet", "adapter")
        )


class DecoderStage(Stage):
    """Second step: trains the VAE's decoder on crops of the photos' latents."""

    def __init__(
        self, pipe: DreamPosePipeline, views: PhotoCrops, *, config: StageConfig, subject: Subject
    ) -> None:
        """Prepares the decoder of `pipe` for training."""
        super().__init__()
        pipe.vae.requires_grad_(False)
        self.decoder = pipe.vae.decoder.requires_grad_(True)
        if isinstance(pipe.vae, AutoencoderKL) and pipe.vae.post_quant_conv is not None:
            self.post_quant_conv = pipe.vae.post_quant_conv.requires_grad_(True)
        self._outer = (pipe,)
        self._views, self._config, self._subject = views, config, subject
        self._downscale = pipe.recipe.downscale
        self._error = ReconstructionLoss(config)

    def num_items(self, split: str) -> int:
        """Photos of the subject."""
        return self._views.num_photos if split == "train" else 0

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Samples a random crop of a random view of each photo, as latents and as pixels."""
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
        """Computes the reconstruction loss of the decoded crops."""
        pipe = self._outer[0]
        codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
        return self._error(codec.decode(batch["latents"]), batch["images"])

    def save(self, folder: Path) -> None:
        """Writes the complete subject folder."""
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
    method: str = "full",
    lora_rank: int | None = None,
    lora_targets: Sequence[str] | None = None,
    num_steps: int | None = None,
    num_vae_steps: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 100,
    savings: Savings = NO_SAVINGS,
) -> Iterator[StepReport]:
    """Finetunes a model on one subject; called again with the same arguments, it resumes.

    As in the paper, UNet and adapter are trained first, then the VAE's decoder. The result is a
    folder for `DreamPosePipeline.load_subject`. During training, checkpoints are in the folder
    `.NAME.training` next to it.

    Args:
        pipe: the base model; not changed.
        photos: of the subject, at least one.
        out: folder of the result.
        name: of the subject.
        accelerator: device and precision.
        motions: a motion of one frame for each photo; None estimates the poses.
        clip: a short video of the subject with its motion, used in addition to the photos.
        method: 'full' trains all weights; 'lora' trains low-rank updates of some layers, which
            need a hundredth of the disk space, and the decoder only if `num_vae_steps` is given.
        lora_rank: overrides the recipe's.
        lora_targets: name suffixes of the layers to update; overrides the recipe's.
        num_steps: of UNet and adapter; overrides the recipe's.
        num_vae_steps: of the decoder; overrides the recipe's; 0 does not train it.
        size: height and width to train at in pixels; by default the model's.
        seed: of crops and noise.
        resume: continue from the last checkpoint.
        stop: polled after each step; once it returns True, a checkpoint is written and the
            generator ends.
        checkpoint_every: steps between checkpoints.
        savings: options that reduce memory.

    Yields:
        A report of each step, numbered over both trainings; `stage` is 'unet', then 'decoder'.

    Raises:
        InputError: there is no photo, no body is found in a photo, `out` contains another subject,
            or method, rank or layers are invalid.
    """
    if not photos:
        raise InputError("photos must contain at least one photo, got none")
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    out, recipe = Path(out), pipe.recipe.at(*(size or pipe.recipe.frame_sizes[0]))
    rank = recipe.lora_rank if lora_rank is None else lora_rank
    targets = tuple(recipe.lora_targets if lora_targets is None else lora_targets)
    run_name = "" if size is None else f" size={recipe.height}x{recipe.width}"
    stage_config = recipe.subject_stage
    if method == "lora":
        lora.check_targets({"unet": pipe.unet, "adapter": pipe.adapter}, rank=rank, targets=targets)
        run_name += f" lora rank={rank} targets={','.join(targets)}"
        stage_config = replace(stage_config, learning_rate=recipe.lora_learning_rate)
        num_vae_steps = num_vae_steps or 0
    subject = checkpoints.describe_subject(
        pipe, name, photos, method=method, rank=rank if method == "lora" else 0
    )
    if resume and out.exists():
        if checkpoints.read_subject(out) == subject:
            return
        raise InputError(
            f"out must be new or contain the same subject, got another in {str(out)!r}: "
            "choose another folder"
        )
    frames = list(photos)
    motions = photo_motions(photos, recipe, motions)
    around = photo_windows(photos, recipe, motions)
    warps = photo_warps(photos, motions) if recipe.surface_detail else None
    if clip is not None:
        more_frames, more_windows = clip_windows(*clip, recipe)
        frames, around = [*frames, *more_frames], [*around, *more_windows]
    if method == "lora":
        # Weights that are not trained need not be copied.
        tuned = _with_parts(pipe, lora.copy_sharing_weights, recipe)
        if num_vae_steps:
            tuned.vae = copy.deepcopy(pipe.vae)
        lora.add_lora(
            {"unet": tuned.unet, "adapter": tuned.adapter}, rank=rank, targets=targets, seed=seed
        )
    else:
        tuned = _with_parts(pipe, copy.deepcopy, recipe)
    for part in (tuned.vae, tuned.image_encoder):
        part.to(accelerator.device)
    views = encode_crops(tuned, frames, around, seed=seed, warps=warps)

    work = out.with_name(f".{out.name}.training")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    facts = asdict(subject)
    facts = {name: facts[name] for name in ("name", "recipe", "base", "photos", "looks")}
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    plan = [
        ("unet", SubjectStage, stage_config, num_steps),
        ("decoder", DecoderStage, recipe.subject_vae_stage, num_vae_steps),
    ]
    lengths = [_steps(config, steps) for _, _, config, steps in plan]
    done = 0
    for (label, kind, config, _), steps in zip(plan, lengths, strict=True):
        if not steps:
            continue
        stage = kind(tuned, views, config=config, subject=subject)
        # Only the components of the stage are moved to the accelerator.
        tuned = tuned.to("cpu")
        for report in trainer.run(
            stage,
            config=config,
            accelerator=accelerator,
            out=work / label,
            options=trainer.RunOptions(
                name=f"{key} seed={seed}{run_name}",
                label=label,
                seed=seed,
                max_steps=steps,
                checkpoint_every=checkpoint_every,
                keep=1,
                savings=savings,
            ),
            stop=stop,
        ):
            yield replace(report, step=done + report.step, total=sum(lengths))
            if report.stopped:
                return
        stage.to("cpu")
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


def _with_parts(
    pipe: DreamPosePipeline, copied: Callable[[nn.Module], Any], recipe: Recipe
) -> DreamPosePipeline:
    parts: dict[str, Any] = {
        name: copied(part) if isinstance(part, nn.Module) else part
        for name, part in pipe.components.items()
    }
    return DreamPosePipeline(**parts, recipe=recipe.to_dict())
