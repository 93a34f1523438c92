"""Training loop with gradient accumulation, validation, checkpoints and exact resume."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dreampose.config import NO_SAVINGS, Savings, StageConfig
from dreampose.data import windows
from dreampose.data.streaming import SHUFFLE_CLIPS
from dreampose.errors import InputError
from dreampose.training import distributed
from dreampose.training.memory import make_optimizer, prepare
from dreampose.training.stage import Stage, StepReport, to_device
from dreampose.training.state import (
    MovingAverage,
    RunProgress,
    list_checkpoints,
    load_state,
    remove_partial_checkpoints,
    save_state,
    tensors_of,
    write_checkpoint,
)


def learning_rate(config: StageConfig, step: int, total: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, then constant or cosine to a tenth.

    diffusers' `get_scheduler` starts the warm-up at zero and its cosine ends at zero.
    """
    rate = config.learning_rate
    if step < config.warmup_steps:
        return rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return rate
    assert config.lr_schedule == "cosine", config.lr_schedule
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a training run.

    Attributes:
        name: identifies the run; only checkpoints of the same name are resumed.
        label: `StepReport.stage` of the reports.
        seed: of the data order and of all noise.
        max_steps: overrides the number of steps of the stage.
        resume: continue from the last checkpoint, if there is one.
        checkpoint_every: steps between checkpoints.
        validate_every: steps between validations.
        num_validation: number of samples per validation.
        keep: number of checkpoints to keep.
        keep_best: write the model with the lowest validation loss to `best`.
        savings: options that reduce memory.
    """

    name: str
    label: str
    seed: int
    max_steps: int | None = None
    resume: bool = True
    checkpoint_every: int = 500
    validate_every: int = 500
    num_validation: int = 128
    keep: int = 2
    keep_best: bool = True
    savings: Savings = NO_SAVINGS


class _Run:
    """A stage on its device with optimizer, moving average and progress."""

    def __init__(
        self, stage: Stage, config: StageConfig, accelerator: Accelerator, options: RunOptions
    ) -> None:
        self.stage, self.config, self.accelerator = stage, config, accelerator
        self.name, self.seed, savings = options.name, options.seed, options.savings
        prepare(stage, savings)
        distributed.prepare_module(stage, accelerator)
        parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(parameters, config, savings)
        self.model, self.optimizer = accelerator.prepare(stage, optimizer)
        # After `prepare`, because sharding replaces the parameters.
        trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        where = "cpu" if savings.average_on_cpu else None
        self.average = MovingAverage(trained, config.ema_decay, device=where)
        self.progress = RunProgress()
        self.epoch: tuple[int, windows.Epoch] | None = None
        self.global_batch = (
            config.batch_size * config.gradient_accumulation * accelerator.num_processes
        )

    @property
    def inner_optimizer(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer

    def total(self, max_steps: int | None) -> int:
        """Total number of steps, from the recipe's steps or epochs."""
        if max_steps is not None or self.config.num_steps:
            return self.config.num_steps if max_steps is None else max_steps
        epochs_left = self.config.num_epochs - self.progress.epoch
        if epochs_left <= 0:
            return self.progress.step
        left = self._epoch(self.progress).num_steps(self.global_batch, self.progress.offset)
        later = self._epoch(RunProgress(epoch=self.progress.epoch + 1)).num_steps(self.global_batch)
        return self.progress.step + left + (epochs_left - 1) * later

    def _epoch(self, progress: RunProgress) -> windows.Epoch:
        clips = self.stage.streamed_clips("train")
        if clips is not None:
            run_length = progress.run_length or self.global_batch
            return windows.plan_streamed_epoch(
                self.stage.buckets("train"),
                clips,
                seed=self.seed,
                epoch=progress.epoch,
                batch_size=self.config.batch_size,
                num_lanes=math.ceil(run_length / self.config.batch_size),
                shuffle_clips=SHUFFLE_CLIPS,
            )
        return windows.plan_epoch(
            self.stage.buckets("train"),
            seed=self.seed,
            epoch=progress.epoch,
            run_length=progress.run_length or self.global_batch,
            fill=self.config.last_batch == "fill",
        )

    def step(self, total: int) -> "_Measured":
        """Makes one optimizer step.

        The items are split into batches with their own seeds, and the loss is the mean over items,
        so the result does not depend on the number of ranks.

        Raises:
            InputError: too many consecutive steps were skipped.
        """
        accelerator, config = self.accelerator, self.config
        rate = learning_rate(config, self.progress.step, total)
        for group in self.inner_optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        if self.epoch is None or self.epoch[0] != self.progress.epoch:
            if not self.progress.run_length:
                self.progress = replace(self.progress, run_length=self.global_batch)
            self.epoch = self.progress.epoch, self._epoch(self.progress)
        progress, order = self.progress, self.epoch[1]
        items = order.items(progress.offset, self.global_batch)
        batches = windows.split_batches(items, config.batch_size)
        num_ranks = accelerator.num_processes
        num_turns = math.ceil(len(batches) / num_ranks)
        loss_sum = torch.zeros((), device=accelerator.device)
        for turn in range(num_turns):
            index = turn * num_ranks + accelerator.process_index
            is_idle = index >= len(batches)
            # All ranks make the same number of calls; an idle rank computes a loss of weight zero.
            chosen = items[:1] if is_idle else batches[index]
            generator = np.random.default_rng((self.seed, progress.step, index))
            batch = to_device(self.stage.draw("train", chosen, generator), accelerator.device)
            with nullcontext() if turn == num_turns - 1 else accelerator.no_sync(self.model):
                # Gradients are averaged over ranks; their sum over turns is the mean over items.
                loss = self.model(batch) / (len(items) / (len(chosen) * num_ranks))
                if is_idle:
                    loss = loss * 0
                accelerator.backward(loss)
            loss_sum += loss.detach()
        return self._apply(float(_reduced(loss_sum, accelerator, "mean")), len(items), rate)

    def _apply(self, loss: float, num_items: int, rate: float) -> "_Measured":
        """Applies the gradients, or skips the step."""
        accelerator, config = self.accelerator, self.config
        limit = config.max_grad_norm or math.inf
        norm_tensor = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        assert isinstance(norm_tensor, Tensor)
        norm = float(distributed.full_tensor(norm_tensor))
        # Loss and norm are equal on all ranks, so all ranks decide alike.
        too_large = bool(config.skip_grad_norm) and norm > config.skip_grad_norm
        skipped = too_large or not (math.isfinite(loss) and math.isfinite(norm))
        # With a loss scaler, accelerate skips such steps itself and must see them to adapt.
        if not skipped or accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        epoch_length = self.stage.num_items("train")
        self.progress = self.progress.advance(num_items, epoch_length).count(skipped=skipped)
        if not skipped:
            self.average.update(self.progress.step)
        if self.progress.skipped_in_row >= config.max_skipped_steps:
            most = f" and at most {config.skip_grad_norm:g}" if config.skip_grad_norm else ""
            raise InputError(
                f"loss and gradient norm must be finite{most}, got {self.progress.skipped_in_row} "
                f"consecutive steps where they were not, the last with loss {loss:g} and norm "
                f"{norm:g} at step {self.progress.step}: lower learning_rate or check the data"
            )
        return _Measured(num_items=num_items, loss=loss, rate=rate, norm=norm, was_skipped=skipped)

    @torch.no_grad()
    def validate(self, num_samples: int) -> float | None:
        """Mean loss over fixed, evenly spaced samples with fixed noise."""
        num_items = self.stage.num_items("validation")
        if not num_items:
            return None
        accelerator = self.accelerator
        items = np.unique(np.linspace(0, num_items - 1, num_samples).astype(np.int64))
        buckets = self.stage.buckets("validation")[items]
        batches = [
            batch
            for bucket in np.unique(buckets)
            for batch in windows.split_batches(items[buckets == bucket], self.config.batch_size)
        ]
        sums = torch.zeros(2, device=accelerator.device)
        self.stage.eval()
        with self.average.applied(), accelerator.autocast():
            # Sharded weights need the same number of calls on all ranks; idle ranks do not count.
            for turn in range(math.ceil(len(batches) / accelerator.num_processes)):
                index = turn * accelerator.num_processes + accelerator.process_index
                chosen = batches[min(index, len(batches) - 1)]
                generator = np.random.default_rng((0, index))
                batch = self.stage.draw("validation", chosen, generator)
                loss = self.stage(to_device(batch, accelerator.device)).float()
                if index < len(batches):
                    sums += torch.stack([loss, torch.ones_like(loss)]) * len(chosen)
        distributed.reshard(self.stage)
        self.stage.train()
        sums = _reduced(sums, accelerator, "sum")
        return float(sums[0] / sums[1])

    def is_best(self, validation_loss: float) -> bool:
        """Whether this is the lowest validation loss so far; if so, it is recorded."""
        lowest = self.progress.best_loss
        if not math.isfinite(validation_loss) or (lowest is not None and validation_loss >= lowest):
            return False
        self.progress = replace(self.progress, best_loss=validation_loss)
        return True

    def resume(self, folder: Path) -> None:
        """Restores the state of the last checkpoint in a folder, if there is one."""
        if found := list_checkpoints(folder):
            self.progress = load_state(
                found[-1], average=self.average, optimizer=self.inner_optimizer, run=self.name
            )

    def write_checkpoint(self, folder: Path, *, keep: int) -> Path | None:
        """Writes a checkpoint and removes old ones; returns its folder on the main process."""
        gathered = self._gather(weights_only=False)
        path = None
        if self.accelerator.is_main_process:
            fill = partial(self._fill_checkpoint, gathered=gathered)
            path = write_checkpoint(folder, self.progress.step, fill, keep=keep)
        self.accelerator.wait_for_everyone()
        return path

    def write_model(self, path: Path) -> Path | None:
        """Writes the model with the averaged weights; returns its folder on the main process."""
        gathered = self._gather(weights_only=True)
        if self.accelerator.is_main_process:
            self._save_model(path, gathered)
        self.accelerator.wait_for_everyone()
        return path if self.accelerator.is_main_process else None

    def _gather(self, *, weights_only: bool) -> distributed.Gathered | None:
        return distributed.gather(
            self.stage,
            averages=self.average.shadow if self.config.ema_decay else {},
            state={} if weights_only else tensors_of(self.average, self.inner_optimizer),
            keep=self.accelerator.is_main_process,
        )

    def _fill_checkpoint(self, folder: Path, gathered: distributed.Gathered | None) -> None:
        if gathered is None:
            tensors = tensors_of(self.average, self.inner_optimizer)
        else:
            tensors = gathered.state
        save_state(folder, progress=self.progress, tensors=tensors, run=self.name)
        self._save_model(folder / "model", gathered)

    def _save_model(self, path: Path, gathered: distributed.Gathered | None) -> None:
        if gathered is None:
            replaced = self.average.applied()
        else:
            replaced = distributed.parameters_replaced(self.stage, gathered.weights)
        with replaced:
            self.stage.save(path)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    num_items: int
    loss: float
    rate: float
    norm: float
    was_skipped: bool


def run(
    stage: Stage,
    *,
    config: StageConfig,
    accelerator: Accelerator,
    out: Path,
    options: RunOptions,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepReport]:
    """Trains a stage; resumes bit-exactly from the last complete checkpoint.

    At the end the stage has the averaged weights. Up to rounding, the result does not depend on the
    number of ranks: N ranks equal one rank with N times as many accumulation steps.

    Args:
        stage: module to train.
        config: hyperparameters of the stage.
        accelerator: device, precision and ranks.
        out: folder of the run: `checkpoints/step_*`, `best` and, at the end, `model`.
        options: of the run.
        stop: polled after each step; once it returns True, a checkpoint is written and the loop
            ends.

    Yields:
        A report of each step.

    Raises:
        InputError: `out` contains checkpoints of another run, or too many consecutive steps were
            skipped because loss or gradients were not finite or too large.
    """
    state = _Run(stage, config, accelerator, options)
    folder = out / "checkpoints"
    if accelerator.is_main_process:
        remove_partial_checkpoints(folder)
    if options.resume:
        state.resume(folder)
    total = state.total(options.max_steps)
    begin = time.perf_counter()
    while state.progress.step < total:
        measured = state.step(total)
        now = time.perf_counter()
        step = state.progress.step
        stopped = _any_rank(stop(), accelerator)
        validation_loss = None
        if step % options.validate_every == 0 or step == total:
            validation_loss = state.validate(options.num_validation)
        best = None
        if options.keep_best and validation_loss is not None and state.is_best(validation_loss):
            best = state.write_model(out / "best")
        due = step % options.checkpoint_every == 0 or step == total or stopped
        yield StepReport(
            step=step,
            total=total,
            loss=measured.loss,
            lr=measured.rate,
            validation_loss=validation_loss,
            checkpoint=state.write_checkpoint(folder, keep=options.keep) if due else None,
            samples_per_second=measured.num_items / (now - begin),
            stage=options.label,
            checkpoint_due=due,
            stopped=stopped and step < total,
            grad_norm=measured.norm,
            skipped=state.progress.skipped,
            was_skipped=measured.was_skipped,
            best=best,
        )
        if stopped and step < total:
            return
        begin = time.perf_counter()
    state.write_model(out / "model")
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
