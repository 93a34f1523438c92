"""State of a training run: progress, moving average, optimizer, checkpoints."""

import contextlib
import json
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreampose.errors import InputError
from dreampose.io.files import new_folder
from dreampose.training import distributed

_STATE_OF_8_BIT_ADAM = ("state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """Progress of a training run.

    Attributes:
        step: optimizer steps done, skipped ones included.
        epoch: current epoch, from 0.
        offset: samples of the epoch that are done.
        run_length: of the epoch, see `windows.plan_epoch`; 0 before its first step. It is saved
            because the number of ranks can change when a run is resumed.
        skipped: number of skipped steps.
        skipped_in_row: number of consecutive skipped steps up to now.
        best_loss: lowest validation loss so far.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0
    run_length: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_loss: float | None = None

    def advance(self, num_samples: int, num_items: int) -> "RunProgress":
        """Progress after a step over `num_samples` of an epoch with `num_items`."""
        if self.offset + num_samples >= num_items:
            return replace(self, step=self.step + 1, epoch=self.epoch + 1, offset=0, run_length=0)
        return replace(self, step=self.step + 1, offset=self.offset + num_samples)

    def count(self, *, skipped: bool) -> "RunProgress":
        """Progress with the counters of skipped steps updated."""
        if not skipped:
            return replace(self, skipped_in_row=0)
        return replace(self, skipped=self.skipped + 1, skipped_in_row=self.skipped_in_row + 1)


class MovingAverage:
    """Exponential moving average of parameters, with a warm-up of the decay.

    The decay of step s is min(decay, (1 + s) / (10 + s)), as in diffusers' `EMAModel`, which cannot
    keep the average on another device than the parameters and allocates a copy of all of them in
    each update.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        device: torch.device | str | None = None,
    ) -> None:
        """Starts from the current values of the parameters.

        Args:
            parameters: by name.
            decay: in [0, 1); 0 disables the average, which then equals the parameters.
            device: of the average, by default that of each parameter.
        """
        self.decay = decay
        self.device = device
        self.parameters = dict(parameters)
        self.shadow = (
            {
                name: value.detach().to(device=device, copy=True)
                for name, value in parameters.items()
            }
            if decay
            else {}
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average after optimizer step `step`, counted from 1."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        values = [value.detach().to(device=self.device) for value in self.parameters.values()]
        # One call for all tensors, as in torch's optimizers; it has no public name.
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateUsage]
        lerp(list(self.shadow.values()), values, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Sets the parameters to their average within a context."""
        if not self.decay:
            yield
            return
        kept = {
            name: value.detach().to(device=self.device, copy=True)
            for name, value in self.parameters.items()
        }
        self._fill(self.shadow)
        try:
            yield
        finally:
            self._fill(kept)

    def keep(self) -> None:
        """Sets the parameters to their average."""
        if self.decay:
            self._fill(self.shadow)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def tensors_of(average: MovingAverage, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Collects the tensors of a run: weights, average, and state of the optimizer."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in average.parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        if average.decay:
            tensors[f"ema/{name}"] = average.shadow[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            # 8-bit Adam counts steps in a plain number; its tables are shared by all parameters,
            # which safetensors does not allow.
            tensor = torch.as_tensor(value).detach()
            tensors[f"{key}/{name}"] = tensor.clone() if key.startswith("qmap") else tensor
    return tensors


def save_state(
    folder: Path, *, progress: RunProgress, tensors: Mapping[str, Tensor], run: str
) -> None:
    """Writes `state.safetensors` and `state.json`; `run` identifies the run."""
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()},
              folder / "state.safetensors")  # fmt: skip
    values = {"run": run, **asdict(progress)}
    (folder / "state.json").write_text(json.dumps(values, indent=1) + "\n")


@torch.no_grad()
def load_state(
    folder: Path, *, average: MovingAverage, optimizer: torch.optim.Optimizer, run: str
) -> RunProgress:
    """Restores parameters, average and optimizer, in place, from files of `save_state`.

    Returns:
        The saved progress.

    Raises:
        InputError: the state belongs to another run.
    """
    facts = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "state.safetensors")
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    expected = {f"weights/{key}": tuple(value.shape) for key, value in average.parameters.items()}
    if facts.pop("run") != run or not expected.items() <= shapes.items():
        raise InputError(
            f"out must contain checkpoints of the same stage, recipe and seed, got others in "
            f"{str(folder)!r}: choose another folder or do not resume"
        )
    for name, parameter in average.parameters.items():
        distributed.copy_full(parameter, tensors[f"weights/{name}"])
        if average.decay:
            distributed.copy_full(average.shadow[name], tensors[f"ema/{name}"])
        state: dict[str, Any] = {}
        if f"step/{name}" in tensors:
            state["step"] = tensors[f"step/{name}"].to(parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            if f"{key}/{name}" in tensors:
                # The fused optimizer needs moments with the memory layout of the weights.
                state[key] = torch.empty_like(parameter)
                distributed.copy_full(state[key], tensors[f"{key}/{name}"])
        for key in _STATE_OF_8_BIT_ADAM:
            if f"{key}/{name}" in tensors:
                state[key] = tensors[f"{key}/{name}"].to(parameter.device)
        if "state1" in state:
            state["step"] = int(state["step"])
        optimizer.state[parameter] = state
    return RunProgress(**facts)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def remove_partial_checkpoints(folder: Path) -> None:
    """Removes incomplete checkpoints left by a killed run."""
    for pattern in (".step_*.part", ".step_*.old"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], *, keep: int) -> Path:
    """Writes a checkpoint atomically and removes all but the last `keep`.

    Args:
        folder: of the checkpoints.
        step: number of the checkpoint.
        fill: writes the files into a folder.
        keep: number of checkpoints to keep.
    """
    final = folder / f"step_{step:08d}"
    with new_folder(final) as part:
        fill(part)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final
