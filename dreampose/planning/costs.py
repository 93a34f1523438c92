"""What the model's real modules cost: steps of training, encoding, rendering. Knows no prices.

A model is built without weights and its own code is run on `trace`'s tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import PNDMScheduler
from torch import Tensor, nn

from dreampose import checkpoints, lora
from dreampose.conditions import clip_tokens
from dreampose.config import NO_SAVINGS, Recipe, Savings
from dreampose.denoiser import Denoiser
from dreampose.guidance import guide
from dreampose.latents import LatentCodec, images_at_once
from dreampose.pipeline import DreamPosePipeline
from dreampose.planning.trace import measure, mixed_precision
from dreampose.subjects import Subject
from dreampose.training import views
from dreampose.training.denoising import BaseStage
from dreampose.training.identity import EncoderStage
from dreampose.training.savings import moment_bytes, prepare
from dreampose.training.subject import DecoderStage, SubjectStage
from dreampose.training.vae import VaeStage
from dreampose.training.views import Views
from dreampose.types import Conditions

_DTYPES = {"fp32": torch.float32, "fp16": torch.bfloat16, "bf16": torch.bfloat16}
"""Types of weights while rendering; both half precisions take the same."""


_ENCODERS = ("image_encoder", "adapter", "vae")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a piece of work takes.

    parameters: of each part. num_trained: parameters that change. held_bytes: what lies on the
    device all the time (weights, moments, averages, kept gradients). peak_bytes: most at once.
    scratch_bytes: what kernels may take beside that, see `trace`. flops: of the piece. state_bytes:
    of a checkpoint of it.
    """

    parameters: Mapping[str, int]
    num_trained: int
    held_bytes: int
    peak_bytes: int
    scratch_bytes: int
    flops: int
    state_bytes: int = 0


def training_step(
    stage: str,
    recipe: Recipe,
    *,
    savings: Savings = NO_SAVINGS,
    precision: str = "fp32",
    num_workers: int = 1,
) -> Cost:
    """One batch of a stage, forward and backward, and the optimizer's memory; see `_step`.

    Args:
        stage: 'vae', 'encoder' or 'base'.
        recipe: of the model.
        savings: of memory.
        precision: 'fp32', or 'bf16' for mixed precision.
        num_workers: of several, each keeps a second copy of the gradients to exchange them.
    """
    pipe = _without_weights(recipe)
    config = getattr(recipe, f"{stage}_stage")
    size = config.batch_size
    made: nn.Module
    if stage == "vae":
        made = VaeStage(pipe, data=None, validation=None, config=config)
        side = config.crop_size or max(recipe.height, recipe.width)
        height, width = min(side, recipe.height), min(side, recipe.width)
        batch = {"pixels": torch.zeros(size, height, width, 3, dtype=torch.uint8)}
    elif stage == "encoder":
        made = EncoderStage(pipe, data=None, validation=None, recipe=recipe, seed=0)
        photos = torch.zeros(size, 3, recipe.height, recipe.width)
        batch = {"first": photos, "second": photos}
    else:
        made = BaseStage(pipe, data=None, validation=None, recipe=recipe, config=config)
        batch = _batch(recipe, size)
    return _step(
        pipe,
        made,
        batch,
        savings=savings,
        precision=precision,
        accumulates=config.gradient_accumulation > 1,
        ema=bool(config.ema_decay),
        exchanges=num_workers > 1,
    )


def subject_step(
    recipe: Recipe,
    *,
    method: str = "full",
    rank: int | None = None,
    savings: Savings = NO_SAVINGS,
    precision: str = "fp32",
) -> Cost:
    """One step of finetuning on a person: the first of `finetune_subject`, UNet and adapter."""
    pipe = _without_weights(recipe)
    if method == "lora":
        parts = {"unet": pipe.unet, "adapter": pipe.adapter}
        with torch.device("meta"):
            lora.add(parts, rank=rank or recipe.lora_rank, targets=recipe.lora_targets)
    stage = SubjectStage(pipe, _views(recipe), config=recipe.subject_stage, subject=_nobody(method))
    return _subject_step(pipe, stage, savings=savings, precision=precision)


def subject_decoder_step(
    recipe: Recipe, *, savings: Savings = NO_SAVINGS, precision: str = "fp32"
) -> Cost:
    """One step of finetuning on a person: the second of `finetune_subject`, the decoder."""
    pipe = _without_weights(recipe)
    config = recipe.subject_vae_stage
    stage = DecoderStage(pipe, _views(recipe), config=config, subject=_nobody("full"))
    return _subject_step(pipe, stage, savings=savings, precision=precision)


def encoding(recipe: Recipe, *, precision: str = "fp32", batch_size: int = 1) -> Cost:
    """Latents and tokens of photos or frames: what preprocessing does with each view."""
    return _inference(recipe, _encode, _ENCODERS, precision=precision, batch_size=batch_size)


def subject_encoding(recipe: Recipe) -> Cost:
    """A batch of views, as `finetune_subject` encodes them before its steps, by VAE and CLIP."""
    count = images_at_once(recipe.height, recipe.width, at_most=views.ENCODE_BATCH)
    cost = encoding(recipe, batch_size=count)
    waiting = 4 * (cost.parameters["unet"] + cost.parameters["adapter"])
    return replace(cost, held_bytes=cost.held_bytes - waiting, peak_bytes=cost.peak_bytes - waiting)


def rendering(
    recipe: Recipe,
    *,
    num_calls: int,
    precision: str = "fp32",
    chunk_size: int = 8,
    join_branches: bool = True,
    offload: str = "none",
    slicing: bool = False,
    tiling: bool = False,
) -> Cost:
    """A chunk of frames: the photo, `num_calls` calls of the guided model, the decoding.

    Args:
        recipe: of the model, and its scales.
        num_calls: see `generate.Request`.
        precision: of weights and computing.
        chunk_size: frames at once.
        join_branches: see `guidance.guide`.
        offload: see `DreamPosePipeline.offload`.
        slicing: see `DreamPosePipeline.split_decoding`.
        tiling: likewise.
    """

    def decode(pipe: DreamPosePipeline, count: int) -> Tensor:
        pipe.split_decoding(slicing=slicing, tiling=tiling)
        return _codec(pipe).decode(_latents(recipe, count))

    def call(pipe: DreamPosePipeline, count: int) -> Tensor:
        return _guided_call(pipe, count, join_branches=join_branches)

    # The parts that a phase brings to the device where the others stay behind.
    phases = (
        (_encode, 1, _ENCODERS, 1),
        (call, num_calls, ("unet",), chunk_size),
        (decode, 1, ("vae",), chunk_size),
    )
    flops = peak = with_scratch = 0
    pipe = _without_weights(recipe)
    width = _DTYPES[precision].itemsize
    parameters = checkpoints.num_parameters(pipe)
    for work, times, parts, count in phases:
        cost = _inference(recipe, work, parts, precision=precision, batch_size=count)
        flops += times * cost.flops
        working = cost.peak_bytes - cost.held_bytes
        if offload == "none":
            kept = cost.held_bytes
        elif offload == "model":
            kept = max(width * parameters[part] for part in parts)
        else:
            kept = max(_largest_layer(getattr(pipe, part)) for part in parts) * width
        peak = max(peak, kept + working)
        with_scratch = max(with_scratch, kept + working + cost.scratch_bytes)
    return Cost(
        parameters=parameters,
        num_trained=0,
        held_bytes=width * sum(parameters.values()) if offload == "none" else 0,
        peak_bytes=peak,
        scratch_bytes=with_scratch - peak,
        flops=flops,
    )


def _subject_step(
    pipe: DreamPosePipeline,
    stage: SubjectStage | DecoderStage,
    *,
    savings: Savings,
    precision: str,
) -> Cost:
    config = pipe.recipe.subject_stage
    if isinstance(stage, DecoderStage):
        config = pipe.recipe.subject_vae_stage
    items = np.zeros(config.batch_size, np.int64)
    return _step(
        pipe,
        stage,
        stage.draw("train", items, np.random.default_rng(0)),
        savings=savings,
        precision=precision,
        accumulates=config.gradient_accumulation > 1,
        ema=bool(config.ema_decay),
    )


def _step(
    pipe: DreamPosePipeline,
    stage: nn.Module,
    batch: Mapping[str, Any],
    *,
    savings: Savings,
    precision: str,
    accumulates: bool,
    ema: bool,
    exchanges: bool = False,
) -> Cost:
    """A batch forward and backward, beside what lies on the device in the middle of a run.

    The stage's own modules alone are there, as accelerate moves them.
    """
    prepare(stage, savings)
    trained = [value for value in stage.parameters() if value.requires_grad]
    moments = sum(moment_bytes(value.numel(), savings) for value in trained)
    copies = int(ema and not savings.average_on_cpu) + int(exchanges)
    num_trained = sum(value.numel() for value in trained)

    def build() -> tuple[nn.Module, dict[str, Any], list[Tensor]]:
        # In the middle of a run: moments are there, and gradients where batches are added up.
        kept = [torch.zeros(moments, dtype=torch.uint8), torch.zeros(copies * num_trained)]
        _give_memory(stage)
        if accumulates:
            for value in stage.parameters():
                value.grad = torch.zeros_like(value) if value.requires_grad else None
        tensors = {
            key: torch.zeros_like(value) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        return stage, {"seed": 0, **tensors}, kept

    def run(made: tuple[nn.Module, dict[str, Any], list[Tensor]]) -> Tensor:
        model, tensors, _ = made
        model.train()
        with mixed_precision(precision):
            loss = model(tensors)
        loss.backward()
        return loss

    parameters = checkpoints.num_parameters(pipe)
    found = measure(build, run)
    return Cost(
        parameters=parameters,
        num_trained=num_trained,
        held_bytes=found.held_bytes,
        peak_bytes=found.peak_bytes,
        scratch_bytes=found.scratch_bytes,
        flops=found.flops,
        state_bytes=4 * num_trained * (2 if ema else 1) + moments,
    )


def _inference(
    recipe: Recipe,
    work: Callable[[DreamPosePipeline, int], Tensor],
    parts: Sequence[str],
    *,
    precision: str,
    batch_size: int,
) -> Cost:
    """Work of some parts without gradients, beside all parts with weights of this type."""
    pipe = _without_weights(recipe)
    parameters = checkpoints.num_parameters(pipe)
    for name in parts:
        # Not the module's own `to`: diffusers' warns of parts that are better kept in float32.
        nn.Module.to(getattr(pipe, name), _DTYPES[precision])
    waiting = sum(number for name, number in parameters.items() if name not in parts)

    def build() -> tuple[DreamPosePipeline, Tensor]:
        for name in parts:
            _give_memory(getattr(pipe, name))
        return pipe, torch.zeros(waiting, dtype=_DTYPES[precision])

    def run(made: tuple[DreamPosePipeline, Tensor]) -> Tensor:
        with torch.no_grad():
            return work(made[0], batch_size)

    found = measure(build, run)
    return Cost(
        parameters=parameters,
        num_trained=0,
        held_bytes=found.held_bytes,
        peak_bytes=found.peak_bytes,
        scratch_bytes=found.scratch_bytes,
        flops=found.flops,
    )


def _encode(pipe: DreamPosePipeline, count: int) -> Tensor:
    recipe = pipe.recipe
    photos = torch.zeros(count, 3, recipe.height, recipe.width)
    tokens = clip_tokens(pipe.image_encoder, photos, recipe.photo_fit)
    return pipe.adapter(tokens, _codec(pipe).encode(photos))


def _guided_call(pipe: DreamPosePipeline, count: int, *, join_branches: bool) -> Tensor:
    recipe = pipe.recipe
    batch = _batch(recipe, count)
    model = guide(
        Denoiser(unet=pipe.unet),
        Conditions(
            tokens=torch.zeros(count, *_token_shape(recipe)), poses=batch["poses"].flatten(1, 2)
        ),
        recipe.image_scale,
        recipe.pose_scale,
        join_branches=join_branches,
    )
    return model(_latents(recipe, count), torch.zeros(()))


def _without_weights(recipe: Recipe) -> DreamPosePipeline:
    # A black null photo would be encoded when a stage is made, of weights that are not there. It
    # costs nothing to speak of.
    with torch.device("meta"):
        pipe = checkpoints.build(replace(recipe, null_image="zeros"))
    # The noise process is no weights: without its values nothing could be run on real tensors.
    pipe.register_modules(scheduler=PNDMScheduler(**recipe.scheduler))
    return pipe


def _give_memory(module: nn.Module) -> None:
    """Puts parameters and buffers that have memory in the place of those that have none."""
    for layer in module.modules():
        for name, value in layer.named_parameters(recurse=False):
            made = torch.empty(value.shape, dtype=value.dtype)
            layer.register_parameter(name, nn.Parameter(made, requires_grad=value.requires_grad))
        for name, value in layer.named_buffers(recurse=False):
            # Zeros, since some are indices.
            setattr(layer, name, torch.zeros(value.shape, dtype=value.dtype))


def _codec(pipe: DreamPosePipeline) -> LatentCodec:
    return LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)


def _largest_layer(module: nn.Module) -> int:
    """Parameters of the layer that has most."""
    return max(
        sum(value.numel() for value in layer.parameters(recurse=False))
        for layer in module.modules()
    )


def _token_shape(recipe: Recipe) -> tuple[int, int]:
    encoder = recipe.image_encoder
    return (encoder["image_size"] // encoder["patch_size"]) ** 2 + 1, encoder["hidden_size"]


def _latents(recipe: Recipe, count: int) -> Tensor:
    return torch.zeros(count, recipe.latent_channels, *recipe.latent_size)


def _batch(recipe: Recipe, size: int) -> dict[str, Tensor]:
    """A batch of the base stage."""
    cells = recipe.latent_size
    batch = {
        "latents": _latents(recipe, size),
        "poses": torch.zeros(size, recipe.num_poses, recipe.pose_channels, *cells),
        "photo_latents": _latents(recipe, size),
    }
    if recipe.image_encoder_frozen:
        return {**batch, "tokens": torch.zeros(size, *_token_shape(recipe))}
    return {
        **batch,
        "photo_poses": torch.zeros(size, recipe.pose_channels, *cells),
        "photos": torch.zeros(size, 3, recipe.height, recipe.width),
    }


def _views(recipe: Recipe) -> Views:
    """Two views of one photo: what finetuning keeps on the CPU and draws from."""
    cells = recipe.latent_size
    return Views(
        pixels=np.zeros((1, 2, recipe.height, recipe.width, 3), np.uint8),
        latents=torch.zeros(1, 2, recipe.latent_channels, *cells),
        tokens=torch.zeros(1, 2, *_token_shape(recipe)),
        poses=torch.zeros(1, 2, recipe.num_poses, recipe.pose_channels, *cells),
    )


def _nobody(method: str) -> Subject:
    return Subject(name="", recipe="", base="", photos=(), looks=(), method=method, rank=0)
