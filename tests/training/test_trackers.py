"""Experiment trackers."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from dreampose.errors import InputError
from dreampose.training import StepReport, trackers


def report(step: int, validation_loss: float | None = None) -> StepReport:
    return StepReport(
        step=step, total=9, loss=0.5 / step, lr=1e-4, validation_loss=validation_loss,
        checkpoint=None, samples_per_second=3.0, stage="base", checkpoint_due=False, stopped=False,
        grad_norm=2.0, skipped=1, was_skipped=False, best=None,
    )  # fmt: skip


def test_curves_arrive(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=tmp_path)
    trackers.start(accelerator, project="dreampose", run="a", facts={"seed": 7, "stage": "base"})
    for each in (report(1), report(2, validation_loss=0.75)):
        accelerator.log(trackers.scalars(each), step=each.step)
    accelerator.end_training()
    events = accumulator.EventAccumulator(str(tmp_path / "dreampose")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/train")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("loss/validation")] == [(2, 0.75)]
    assert [e.value for e in events.Scalars("skipped_steps")] == [1, 1]


def test_unknown_and_missing_trackers_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="track must be one of tensorboard, wandb, mlflow, got"):
        trackers.check(["tensorbord"])
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(InputError, match="'wandb' needs the package wandb.*pip install wandb"):
        trackers.check(["wandb"])
