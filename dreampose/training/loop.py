"""The training loop: accelerate, accumulation, moving average, checkpoints, exact resume.

Knows nothing of what is trained: a `Stage` draws batches and returns losses.
"""

import itertools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dreampose import windows
from dreampose.config import StageConfig
from dreampose.training.state import (
    MovingAverage,
    Place,
    checkpoints_in,
    load_state,
    save_state,
    sweep,
    write_checkpoint,
)


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One optimizer step: its number (from 1) of `total`, and what was measured.

    loss: mean over the step's samples of all ranks. validation_loss: mean over fixed samples,
    noise and timesteps, with the averaged weights; `None` on steps without validation.
    checkpoint: folder written after this step, on the main process; `checkpoint_due` says on
    every rank whether there is one. samples_per_second: of all ranks together. stage: what is
    trained. stopped: the run ends here because it was asked to, before its last step.
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


class Stage(nn.Module, ABC):
    """What is trained: its parameters that require gradients are, the others stay as they are."""

    @abstractmethod
    def num_items(self, split: str) -> int:
        """Items an epoch visits, of the 'train' or 'validation' split; 0 if there are none."""

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


def learning_rate(config: StageConfig, step: int, total: int) -> float:
    """Rate of the step with this index (from 0): linear warm-up, then constant or cosine."""
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return rate
    assert config.lr_schedule == "cosine", config.lr_schedule
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Moves the tensors of a batch."""
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


class _Run:
    """A stage on its device with optimizer, average and place."""

    def __init__(
        self, stage: Stage, config: StageConfig, accelerator: Accelerator, seed: int
    ) -> None:
        self.stage, self.config, self.accelerator, self.seed = stage, config, accelerator, seed
        trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        optimizer = torch.optim.AdamW(
            trained.values(),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(stage, optimizer)
        self.average = MovingAverage(trained, config.ema_decay)
        self.place = Place()
        self.order_epoch = -1
        self.global_batch = (
            config.batch_size * config.gradient_accumulation * accelerator.num_processes
        )

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def total(self, max_steps: int | None) -> int:
        """Steps of the whole run, from the recipe's steps or epochs."""
        if max_steps is not None or self.config.num_steps:
            return self.config.num_steps if max_steps is None else max_steps
        steps_per_epoch = math.ceil(self.stage.num_items("train") / self.global_batch)
        left_of_epoch = math.ceil(
            (self.stage.num_items("train") - self.place.offset) / self.global_batch
        )
        epochs_left = self.config.num_epochs - self.place.epoch
        if epochs_left <= 0:
            return self.place.step
        return self.place.step + left_of_epoch + (epochs_left - 1) * steps_per_epoch

    def step(self, total: int) -> tuple[float, float]:
        """One optimizer step: its loss and learning rate."""
        accelerator, config, place = self.accelerator, self.config, self.place
        rate = learning_rate(config, place.step, total)
        for group in self.inner_optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        num_items = self.stage.num_items("train")
        if self.order_epoch != place.epoch:
            self.order = windows.epoch_order(num_items, seed=self.seed, epoch=place.epoch)
            self.order_epoch = place.epoch
        part = config.batch_size * accelerator.num_processes
        loss_sum = torch.zeros((), device=accelerator.device)
        for index in range(config.gradient_accumulation):
            items = windows.shard(
                self.order,
                offset=place.offset + index * part,
                batch_size=config.batch_size,
                rank=accelerator.process_index,
                num_ranks=accelerator.num_processes,
            )
            generator = np.random.default_rng(
                (self.seed, place.step, index, accelerator.process_index)
            )
            batch = to_device(self.stage.draw("train", items, generator), accelerator.device)
            last = index == config.gradient_accumulation - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self.model(batch) / config.gradient_accumulation
                accelerator.backward(loss)
            loss_sum += loss.detach()
        if config.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.place = place.advance(self.global_batch, num_items)
        self.average.update(self.place.step)
        loss_sum = _reduced(loss_sum, accelerator, "mean")
        return float(loss_sum), rate

    @torch.no_grad()
    def validate(self, num_samples: int) -> float | None:
        """Mean loss of fixed, evenly spread samples with fixed noise."""
        num_items = self.stage.num_items("validation")
        if not num_items:
            return None
        accelerator = self.accelerator
        items = np.unique(np.linspace(0, num_items - 1, num_samples).astype(np.int64))
        batches = [
            items[start : start + self.config.batch_size]
            for start in range(0, len(items), self.config.batch_size)
        ]
        sums = torch.zeros(2, device=accelerator.device)
        self.stage.eval()
        with self.average.applied(), accelerator.autocast():
            for index in range(accelerator.process_index, len(batches), accelerator.num_processes):
                generator = np.random.default_rng((0, index))
                batch = self.stage.draw("validation", batches[index], generator)
                loss = self.stage(to_device(batch, accelerator.device))
                sums += torch.stack([loss.float(), torch.ones_like(loss).float()]) * len(
                    batches[index]
                )
        self.stage.train()
        sums = _reduced(sums, accelerator, "sum")
        return float(sums[0] / sums[1])


def run(
    stage: Stage,
    *,
    config: StageConfig,
    accelerator: Accelerator,
    out: Path,
    name: str,
    label: str,
    seed: int,
    max_steps: int | None = None,
    resume: bool = True,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_every: int = 500,
    validate_every: int = 500,
    num_validation: int = 128,
    keep: int = 2,
) -> Iterator[StepReport]:
    """Trains a stage, one report a step; resumes bit-exactly from the last whole checkpoint.

    At the end the stage holds the averaged weights.

    Args:
        stage: what is trained.
        config: its numbers.
        accelerator: device, precision and ranks.
        out: folder of the run: `checkpoints/step_*` and, at the end, `model`.
        name: what a checkpoint must belong to in order to be resumed from.
        label: of the reports, see `StepReport.stage`.
        seed: of the data order and of all noise.
        max_steps: instead of the recipe's number of steps.
        resume: go on from the last checkpoint in `out`, if there is one.
        stop: polled after each step; once true, a checkpoint is written and the loop ends.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        num_validation: samples of a validation.
        keep: checkpoints kept.

    Raises:
        InputError: `out` holds checkpoints of another run.
    """
    state = _Run(stage, config, accelerator, seed)
    folder = out / "checkpoints"
    if accelerator.is_main_process:
        sweep(folder)
    if resume and (found := checkpoints_in(folder)):
        state.place = load_state(
            found[-1], average=state.average, optimizer=state.inner_optimizer, run=name
        )
    total = state.total(max_steps)

    def fill(part: Path) -> None:
        save_state(
            part,
            place=state.place,
            average=state.average,
            optimizer=state.inner_optimizer,
            run=name,
        )
        with state.average.applied():
            stage.save(part / "model")

    def write() -> Path | None:
        path = None
        if accelerator.is_main_process:
            path = write_checkpoint(folder, state.place.step, fill, keep=keep)
        accelerator.wait_for_everyone()
        return path

    begin = time.perf_counter()
    for _ in itertools.count():
        if state.place.step >= total:
            break
        loss, rate = state.step(total)
        now = time.perf_counter()
        step = state.place.step
        stopped = _any_rank(stop(), accelerator)
        validation_loss = None
        if step % validate_every == 0 or step == total:
            validation_loss = state.validate(num_validation)
        due = step % checkpoint_every == 0 or step == total or stopped
        yield StepReport(
            step=step,
            total=total,
            loss=loss,
            lr=rate,
            validation_loss=validation_loss,
            checkpoint=write() if due else None,
            samples_per_second=state.global_batch / (now - begin),
            stage=label,
            checkpoint_due=due,
            stopped=stopped and step < total,
        )
        if stopped and step < total:
            return
        begin = time.perf_counter()
    if accelerator.is_main_process:
        with state.average.applied():
            stage.save(out / "model")
    state.average.keep()
    accelerator.wait_for_everyone()


def _any_rank(flag: bool, accelerator: Accelerator) -> bool:
    if accelerator.num_processes == 1:
        return flag
    return bool(_reduced(torch.tensor(float(flag), device=accelerator.device), accelerator, "sum"))


def _reduced(values: Tensor, accelerator: Accelerator, reduction: str) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    result = accelerator.reduce(values, reduction=reduction)
    assert isinstance(result, Tensor)
    return result
