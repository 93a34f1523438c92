"""The training loop: accelerate, accumulation, moving average, checkpoints, exact resume.

Knows nothing of what is trained: a `Stage` draws batches and returns losses.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from dreampose.config import NO_SAVINGS, Savings, StageConfig
from dreampose.data import windows
from dreampose.errors import InputError
from dreampose.training import distributed
from dreampose.training.memory import make_optimizer, prepare
from dreampose.training.stage import Stage, StepReport, to_device
from dreampose.training.state import (
    MovingAverage,
    Place,
    checkpoints_in,
    load_state,
    save_state,
    sweep,
    tensors_of,
    write_checkpoint,
)


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


class _Run:
    """A stage on its device with optimizer, average and place."""

    def __init__(
        self,
        stage: Stage,
        config: StageConfig,
        accelerator: Accelerator,
        seed: int,
        savings: Savings,
    ) -> None:
        self.stage, self.config, self.accelerator, self.seed = stage, config, accelerator, seed
        prepare(stage, savings)
        distributed.make_ready(stage, accelerator)
        parameters = [parameter for parameter in stage.parameters() if parameter.requires_grad]
        optimizer = make_optimizer(parameters, config, savings)
        self.model, self.optimizer = accelerator.prepare(stage, optimizer)
        # Only now: where weights are spread over ranks, these are not the parameters from before.
        trained = {name: p for name, p in stage.named_parameters() if p.requires_grad}
        where = "cpu" if savings.average_on_cpu else None
        self.average = MovingAverage(trained, config.ema_decay, device=where)
        self.place = Place()
        self.epoch: tuple[int, windows.Epoch] | None = None
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
        epochs_left = self.config.num_epochs - self.place.epoch
        if epochs_left <= 0:
            return self.place.step
        left = self._epoch(self.place).num_steps(self.global_batch, self.place.offset)
        later = self._epoch(Place(epoch=self.place.epoch + 1)).num_steps(self.global_batch)
        return self.place.step + left + (epochs_left - 1) * later

    def _epoch(self, place: Place) -> windows.Epoch:
        return windows.plan_epoch(
            self.stage.buckets("train"),
            seed=self.seed,
            epoch=place.epoch,
            run_length=place.run_length or self.global_batch,
            fill=self.config.last_batch == "fill",
        )

    def step(self, total: int) -> "_Measured":
        """One optimizer step.

        Its items are cut into slots, each with randomness of its own, whoever draws it; the loss is
        the mean over items, however they are spread. So a step is the same on any number of ranks.

        Raises:
            InputError: too many steps in a row had to be skipped.
        """
        accelerator, config = self.accelerator, self.config
        rate = learning_rate(config, self.place.step, total)
        for group in self.inner_optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        if self.epoch is None or self.epoch[0] != self.place.epoch:
            if not self.place.run_length:
                self.place = replace(self.place, run_length=self.global_batch)
            self.epoch = self.place.epoch, self._epoch(self.place)
        place, order = self.place, self.epoch[1]
        items = order.items(place.offset, self.global_batch)
        slots = windows.split_batches(items, config.batch_size)
        num_ranks = accelerator.num_processes
        num_turns = math.ceil(len(slots) / num_ranks)
        loss_sum = torch.zeros((), device=accelerator.device)
        for turn in range(num_turns):
            slot = turn * num_ranks + accelerator.process_index
            is_idle = slot >= len(slots)
            # A rank that is left without items takes part with one that does not count.
            chosen = items[:1] if is_idle else slots[slot]
            generator = np.random.default_rng((self.seed, place.step, slot))
            batch = to_device(self.stage.draw("train", chosen, generator), accelerator.device)
            with nullcontext() if turn == num_turns - 1 else accelerator.no_sync(self.model):
                # Ranks are averaged over; the sum over turns is to be the mean over items.
                loss = self.model(batch) / (len(items) / (len(chosen) * num_ranks))
                if is_idle:
                    loss = loss * 0
                accelerator.backward(loss)
            loss_sum += loss.detach()
        return self._apply(float(_reduced(loss_sum, accelerator, "mean")), len(items), rate)

    def _apply(self, loss: float, num_items: int, rate: float) -> "_Measured":
        """Takes the step that the gradients ask for, or skips it."""
        accelerator, config = self.accelerator, self.config
        limit = config.max_grad_norm or math.inf
        norm_tensor = accelerator.clip_grad_norm_(self.model.parameters(), limit)
        assert isinstance(norm_tensor, Tensor)
        norm = float(distributed.whole(norm_tensor))
        # All ranks know the same loss and norm, so all decide alike.
        too_large = bool(config.skip_grad_norm) and norm > config.skip_grad_norm
        skipped = too_large or not (math.isfinite(loss) and math.isfinite(norm))
        # In half precision accelerate skips by itself and must be asked to, to find its scale.
        if not skipped or accelerator.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        epoch_length = self.stage.num_items("train")
        self.place = self.place.advance(num_items, epoch_length).count(skipped=skipped)
        if not skipped:
            self.average.update(self.place.step)
        if self.place.skipped_in_row >= config.max_skipped_steps:
            most = f" and at most {config.skip_grad_norm:g}" if config.skip_grad_norm else ""
            raise InputError(
                f"loss and gradient norm must be finite{most}, got {self.place.skipped_in_row} "
                f"steps in a row that were not, the last with loss {loss:g} and norm {norm:g} at "
                f"step {self.place.step}: lower learning_rate, or look at the data"
            )
        return _Measured(num_items=num_items, loss=loss, rate=rate, norm=norm, was_skipped=skipped)

    @torch.no_grad()
    def validate(self, num_samples: int) -> float | None:
        """Mean loss of fixed, evenly spread samples with fixed noise."""
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
            # All ranks make as many calls, which spread weights need; idle ones count for nothing.
            for turn in range(math.ceil(len(batches) / accelerator.num_processes)):
                index = turn * accelerator.num_processes + accelerator.process_index
                chosen = batches[min(index, len(batches) - 1)]
                generator = np.random.default_rng((0, index))
                batch = self.stage.draw("validation", chosen, generator)
                loss = self.stage(to_device(batch, accelerator.device)).float()
                if index < len(batches):
                    sums += torch.stack([loss, torch.ones_like(loss)]) * len(chosen)
        distributed.spread_again(self.stage)
        self.stage.train()
        sums = _reduced(sums, accelerator, "sum")
        return float(sums[0] / sums[1])

    def is_best(self, validation_loss: float) -> bool:
        """Whether this is the lowest so far, which is remembered."""
        lowest = self.place.best_loss
        if not math.isfinite(validation_loss) or (lowest is not None and validation_loss >= lowest):
            return False
        self.place = replace(self.place, best_loss=validation_loss)
        return True


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
    keep_best: bool = True,
    savings: Savings = NO_SAVINGS,
) -> Iterator[StepReport]:
    """Trains a stage, one report a step; resumes bit-exactly from the last whole checkpoint.

    At the end the stage holds the averaged weights. With as many items in a step, any number of
    ranks does the same but for rounding: N ranks are one that accumulates N times as often.

    Args:
        stage: what is trained.
        config: its numbers.
        accelerator: device, precision and ranks.
        out: folder of the run: `checkpoints/step_*`, `best` and, at the end, `model`.
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
        keep_best: write the model of each lowest validation loss to `best`.
        savings: of memory.

    Raises:
        InputError: `out` holds checkpoints of another run, or too many steps in a row had a loss
            or gradients that were not finite or too large.
    """
    state = _Run(stage, config, accelerator, seed, savings)
    folder = out / "checkpoints"
    if accelerator.is_main_process:
        sweep(folder)
    if resume and (found := checkpoints_in(folder)):
        state.place = load_state(
            found[-1], average=state.average, optimizer=state.inner_optimizer, run=name
        )
    total = state.total(max_steps)

    def gather(*, weights_alone: bool) -> distributed.Gathered | None:
        return distributed.gather(
            stage,
            averages=state.average.shadow if config.ema_decay else {},
            state={} if weights_alone else tensors_of(state.average, state.inner_optimizer),
            keep=accelerator.is_main_process,
        )

    def save_model(path: Path, gathered: distributed.Gathered | None) -> None:
        """On the main process, the averaged weights."""
        if gathered is not None:
            with distributed.standing_in(stage, gathered.weights):
                stage.save(path)
            return
        with state.average.applied():
            stage.save(path)

    def write() -> Path | None:
        gathered = gather(weights_alone=False)

        def fill(part: Path) -> None:
            if gathered is None:
                tensors = tensors_of(state.average, state.inner_optimizer)
            else:
                tensors = gathered.state
            save_state(part, place=state.place, tensors=tensors, run=name)
            save_model(part / "model", gathered)

        path = None
        if accelerator.is_main_process:
            path = write_checkpoint(folder, state.place.step, fill, keep=keep)
        accelerator.wait_for_everyone()
        return path

    def write_model(path: Path) -> Path | None:
        gathered = gather(weights_alone=True)
        if accelerator.is_main_process:
            save_model(path, gathered)
        accelerator.wait_for_everyone()
        return path if accelerator.is_main_process else None

    begin = time.perf_counter()
    for _ in itertools.count():
        if state.place.step >= total:
            break
        measured = state.step(total)
        now = time.perf_counter()
        step = state.place.step
        stopped = _any_rank(stop(), accelerator)
        validation_loss = None
        if step % validate_every == 0 or step == total:
            validation_loss = state.validate(num_validation)
        best = None
        if keep_best and validation_loss is not None and state.is_best(validation_loss):
            best = write_model(out / "best")
        due = step % checkpoint_every == 0 or step == total or stopped
        yield StepReport(
            step=step,
            total=total,
            loss=measured.loss,
            lr=measured.rate,
            validation_loss=validation_loss,
            checkpoint=write() if due else None,
            samples_per_second=measured.num_items / (now - begin),
            stage=label,
            checkpoint_due=due,
            stopped=stopped and step < total,
            grad_norm=measured.norm,
            skipped=state.place.skipped,
            was_skipped=measured.was_skipped,
            best=best,
        )
        if stopped and step < total:
            return
        begin = time.perf_counter()
    write_model(out / "model")
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
