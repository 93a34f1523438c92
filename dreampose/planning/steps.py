"""What a step of training or finetuning costs. Knows no prices."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dreampose import checkpoints
from dreampose.config import NO_SAVINGS, Recipe, Savings
from dreampose.models import lora
from dreampose.pipeline import DreamPosePipeline
from dreampose.planning.bare import batch_of, give_memory, nobody, views_of, without_weights
from dreampose.planning.cost import Cost
from dreampose.planning.trace import measure, mixed_precision
from dreampose.training.base_stage import BaseStage
from dreampose.training.encoder_stage import EncoderStage
from dreampose.training.memory import moment_bytes, prepare
from dreampose.training.subject import DecoderStage, SubjectStage
from dreampose.training.vae_stage import VaeStage


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
    pipe = without_weights(recipe)
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
        batch = batch_of(recipe, size)
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
    pipe = without_weights(recipe)
    if method == "lora":
        parts = {"unet": pipe.unet, "adapter": pipe.adapter}
        with torch.device("meta"):
            lora.add_lora(parts, rank=rank or recipe.lora_rank, targets=recipe.lora_targets)
    stage = SubjectStage(
        pipe, views_of(recipe), config=recipe.subject_stage, subject=nobody(method)
    )
    return _subject_step(pipe, stage, savings=savings, precision=precision)


def subject_decoder_step(
    recipe: Recipe, *, savings: Savings = NO_SAVINGS, precision: str = "fp32"
) -> Cost:
    """One step of finetuning on a person: the second of `finetune_subject`, the decoder."""
    pipe = without_weights(recipe)
    config = recipe.subject_vae_stage
    stage = DecoderStage(pipe, views_of(recipe), config=config, subject=nobody("full"))
    return _subject_step(pipe, stage, savings=savings, precision=precision)


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
        give_memory(stage)
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
