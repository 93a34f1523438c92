"""Interface of training stages, and report of a training step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Report of one optimizer step.

    Attributes:
        step: number of the step, from 1.
        total: number of steps of the run.
        loss: mean over the samples of the step on all ranks.
        lr: learning rate.
        validation_loss: mean over fixed samples, noise and timesteps, with the averaged weights;
            None on steps without validation.
        checkpoint: folder written after this step; None on other ranks than the main process.
        samples_per_second: of all ranks together.
        stage: name of the stage.
        checkpoint_due: whether a checkpoint was written, equal on all ranks.
        stopped: whether the run ends here, before its last step, because `stop` returned True.
        grad_norm: norm of all gradients before clipping.
        skipped: number of steps skipped so far.
        was_skipped: whether this step was skipped.
        best: model folder written after this step because its validation loss is the lowest so
            far; None on other ranks than the main process.
    """

    step: int
    total: int
    loss: float
    lr: float
    validation_loss: float | None
    checkpoint: Path | None
    samples_per_second: float
    stage: str
    checkpoint_due: bool
    stopped: bool
    grad_norm: float
    skipped: int
    was_skipped: bool
    best: Path | None


class Stage(nn.Module, ABC):
    """Module that the training loop optimises: all its parameters that require gradients."""

    @abstractmethod
    def num_items(self, split: str) -> int:
        """Number of items per epoch of the split 'train' or 'validation'; can be 0."""

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """Bucket of each item; a batch has items of one bucket only."""
        return np.zeros(self.num_items(split), np.int64)

    def streamed_clips(self, split: str) -> Int64[np.ndarray, " n"] | None:
        """Clip of each item if the data are streamed, so that few clips are needed at a time."""
        del split
        return None

    @abstractmethod
    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Makes a batch of these items on the CPU, with all randomness from `generator`."""

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Computes the loss of a batch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the current weights as the stage's result, such as a pipeline folder."""


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the tensors of a batch to a device; other values are not changed."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
