"""What the loop trains and what it tells of a step: its contract with stages and callers.

Knows nothing of how either is done.
"""

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
    """One optimizer step: its number (from 1) of `total`, and what was measured.

    loss: mean over the step's samples of all ranks. validation_loss: mean over fixed samples,
    noise and timesteps, with the averaged weights; `None` on steps without validation.
    checkpoint: folder written after this step, on the main process; `checkpoint_due` says on
    every rank whether there is one. samples_per_second: of all ranks together. stage: what is
    trained. stopped: the run ends here because it was asked to, before its last step. grad_norm: of
    all gradients together, before they were scaled down. skipped: steps skipped so far; the step is
    one of them where `was_skipped`. best: model folder written on the main process because the
    validation loss is the lowest so far.
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
    """What is trained: its parameters that require gradients are, the others stay as they are."""

    @abstractmethod
    def num_items(self, split: str) -> int:
        """Items an epoch visits, of the 'train' or 'validation' split; 0 if there are none."""

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """Which items may share a batch: those with the same number."""
        return np.zeros(self.num_items(split), np.int64)

    @abstractmethod
    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """The batch of these items, on the CPU; all its randomness comes from `generator`."""

    @abstractmethod
    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The loss of a batch."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes the present weights as what the stage makes, e.g. a pipeline folder."""


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the tensors of a batch."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
