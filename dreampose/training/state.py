"""What a training run remembers: weights, their moving average, optimizer, place in the data.

Knows nothing of losses or models beyond the names of their parameters.
"""

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
class Place:
    """Where a run stands: optimizer steps done, and samples of the current epoch visited.

    run_length: the epoch's, see `windows.plan_epoch`; 0 before its first step. It is kept because
    ranks may be fewer or more when the run goes on. skipped: steps skipped so far, and
    skipped_in_row at the end. best_loss: lowest validation loss so far.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0
    run_length: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    best_loss: float | None = None

    def advance(self, num_samples: int, num_items: int) -> "Place":
        """The place after one step over `num_samples` of an epoch of `num_items`."""
        if self.offset + num_samples >= num_items:
            return replace(self, step=self.step + 1, epoch=self.epoch + 1, offset=0, run_length=0)
        return replace(self, step=self.step + 1, offset=self.offset + num_samples)

    def count(self, *, skipped: bool) -> "Place":
        """The same place, with a step that was skipped or not."""
        if not skipped:
            return replace(self, skipped_in_row=0)
        return replace(self, skipped=self.skipped + 1, skipped_in_row=self.skipped_in_row + 1)


class MovingAverage:
    """Exponential moving average of parameters, with a warm-up of the decay."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        decay: float,
        device: torch.device | str | None = None,
    ) -> None:
        """Starts at the parameters' present values; a decay of 0 follows them exactly.

        The average lies on `device`, by default beside each parameter.
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
        """Takes in the parameters after optimizer step `step` (counted from 1)."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        values = [value.detach().to(device=self.device) for value in self.parameters.values()]
        # One call for all tensors; torch's own optimizers use it, but it has no public name.
        lerp = torch._foreach_lerp_  # pyright: ignore[reportPrivateUsage]
        lerp(list(self.shadow.values()), values, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Generator[None, None, None]:
        """Puts the average into the parameters for a while."""
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
        """Puts the average into the parameters for good."""
        if self.decay:
            self._fill(self.shadow)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def tensors_of(average: MovingAverage, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of a run as they are: weights, their average, the optimizer's moments."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in average.parameters.items():
        tensors[f"weights/{name}"] = parameter.detach()
        if average.decay:
            tensors[f"ema/{name}"] = average.shadow[name]
        for key, value in optimizer.state.get(parameter, {}).items():
            # 8-bit Adam counts its steps in a plain number, and its tables are shared by all
            # parameters, which no file can say.
            tensor = torch.as_tensor(value).detach()
            tensors[f"{key}/{name}"] = tensor.clone() if key.startswith("qmap") else tensor
    return tensors


def save_state(folder: Path, *, place: Place, tensors: Mapping[str, Tensor], run: str) -> None:
    """Writes `state.safetensors` and `state.json`; `run` names what the state belongs to."""
    save_file({key: value.cpu().contiguous() for key, value in tensors.items()},
              folder / "state.safetensors")  # fmt: skip
    (folder / "state.json").write_text(json.dumps({"run": run, **asdict(place)}, indent=1) + "\n")


@torch.no_grad()
def load_state(
    folder: Path, *, average: MovingAverage, optimizer: torch.optim.Optimizer, run: str
) -> Place:
    """Inverse of `tensors_of` and `save_state`, in place.

    Raises:
        InputError: the state belongs to another run.
    """
    facts = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "state.safetensors")
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    expected = {f"weights/{key}": tuple(value.shape) for key, value in average.parameters.items()}
    if facts.pop("run") != run or not expected.items() <= shapes.items():
        raise InputError(
            f"out must hold checkpoints of the same stage, recipe and seed, got others in "
            f"{str(folder)!r}: choose another folder or start afresh"
        )
    for name, parameter in average.parameters.items():
        distributed.fill(parameter, tensors[f"weights/{name}"])
        if average.decay:
            distributed.fill(average.shadow[name], tensors[f"ema/{name}"])
        state: dict[str, Any] = {}
        if f"step/{name}" in tensors:
            state["step"] = tensors[f"step/{name}"].to(parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            if f"{key}/{name}" in tensors:
                # The fused step walks raw memory: moments must lie in it as the weights do.
                state[key] = torch.empty_like(parameter)
                distributed.fill(state[key], tensors[f"{key}/{name}"])
        for key in _STATE_OF_8_BIT_ADAM:
            if f"{key}/{name}" in tensors:
                state[key] = tensors[f"{key}/{name}"].to(parameter.device)
        if "state1" in state:
            state["step"] = int(state["step"])
        optimizer.state[parameter] = state
    return Place(**facts)


def checkpoints_in(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(folder.glob("step_*"))


def sweep(folder: Path) -> None:
    """Removes what a killed run left half-written."""
    for pattern in (".step_*.part", ".step_*.old"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def write_checkpoint(folder: Path, step: int, fill: Callable[[Path], None], *, keep: int) -> Path:
    """Writes a checkpoint under a temporary name, renames it, and drops all but the last `keep`."""
    final = folder / f"step_{step:08d}"
    with new_folder(final) as part:
        fill(part)
    for old in checkpoints_in(folder)[:-keep]:
        shutil.rmtree(old)
    return final
