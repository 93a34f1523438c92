"""What encoding and rendering cost. Knows no prices."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dreampose import checkpoints
from dreampose.config import Recipe
from dreampose.diffusion.guidance import guide
from dreampose.models.adapter import clip_tokens
from dreampose.models.unet import Denoiser
from dreampose.models.vae import encode_batch_size
from dreampose.pipeline import DreamPosePipeline
from dreampose.planning.bare import (
    batch_of,
    codec_of,
    give_memory,
    latents,
    token_shape,
    without_weights,
)
from dreampose.planning.cost import Cost
from dreampose.planning.trace import measure
from dreampose.training import photo_crops
from dreampose.types import Conditions

_DTYPES = {"fp32": torch.float32, "fp16": torch.bfloat16, "bf16": torch.bfloat16}
"""Types of weights while rendering; both half precisions take the same."""


_ENCODERS = ("image_encoder", "adapter", "vae")


def encoding(recipe: Recipe, *, precision: str = "fp32", batch_size: int = 1) -> Cost:
    """Latents and tokens of photos or frames: what preprocessing does with each view."""
    return _inference(recipe, _encode, _ENCODERS, precision=precision, batch_size=batch_size)


def subject_encoding(recipe: Recipe) -> Cost:
    """A batch of views, as `finetune_subject` encodes them before its steps, by VAE and CLIP."""
    count = encode_batch_size(recipe.height, recipe.width, at_most=photo_crops.ENCODE_BATCH)
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
        return codec_of(pipe).decode(latents(recipe, count))

    def call(pipe: DreamPosePipeline, count: int) -> Tensor:
        return _guided_call(pipe, count, join_branches=join_branches)

    # The parts that a phase brings to the device where the others stay behind.
    phases = (
        (_encode, 1, _ENCODERS, 1),
        (call, num_calls, ("unet",), chunk_size),
        (decode, 1, ("vae",), chunk_size),
    )
    flops = peak = with_scratch = 0
    pipe = without_weights(recipe)
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


def _inference(
    recipe: Recipe,
    work: Callable[[DreamPosePipeline, int], Tensor],
    parts: Sequence[str],
    *,
    precision: str,
    batch_size: int,
) -> Cost:
    """Work of some parts without gradients, beside all parts with weights of this type."""
    pipe = without_weights(recipe)
    parameters = checkpoints.num_parameters(pipe)
    for name in parts:
        # Not the module's own `to`: diffusers' warns of parts that are better kept in float32.
        nn.Module.to(getattr(pipe, name), _DTYPES[precision])
    waiting = sum(number for name, number in parameters.items() if name not in parts)

    def build() -> tuple[DreamPosePipeline, Tensor]:
        for name in parts:
            give_memory(getattr(pipe, name))
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
    return pipe.adapter(tokens, codec_of(pipe).encode(photos))


def _guided_call(pipe: DreamPosePipeline, count: int, *, join_branches: bool) -> Tensor:
    recipe = pipe.recipe
    batch = batch_of(recipe, count)
    model = guide(
        Denoiser(unet=pipe.unet),
        Conditions(
            tokens=torch.zeros(count, *token_shape(recipe)), poses=batch["poses"].flatten(1, 2)
        ),
        recipe.image_scale,
        recipe.pose_scale,
        join_branches=join_branches,
    )
    return model(latents(recipe, count), torch.zeros(()))


def _largest_layer(module: nn.Module) -> int:
    """Parameters of the layer that has most."""
    return max(
        sum(value.numel() for value in layer.parameters(recurse=False))
        for layer in module.modules()
    )
