"""Skipped steps and best weights."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dreampose.config import StageConfig, replace
from dreampose.errors import InputError
from dreampose.training import trainer
from dreampose.training.stage import Stage

CONFIG = StageConfig(learning_rate=0.1, num_steps=6, batch_size=1, weight_decay=0.0)
NAN = math.nan


class Slope(Stage):
    """One weight that falls with every step; `factors` scale the loss of each draw."""

    def __init__(self, factors: list[float], truth: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.factors, self.truth = factors, truth

    def num_items(self, split: str) -> int:
        return len(self.factors) if split == "train" else int(self.truth is not None)

    def draw(self, split: str, items: Any, generator: np.random.Generator) -> dict[str, Any]:
        if split == "validation":
            return {"validation": True}
        return {"factor": self.factors.pop(0)}

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        if "validation" in batch:
            assert self.truth is not None
            return self.truth(self.weight.detach())
        return self.weight * batch["factor"]

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weight.json").write_text(json.dumps(self.weight.item()))


def run(
    stage: Slope,
    out: Path,
    config: StageConfig = CONFIG,
    stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> list[Any]:
    return list(
        trainer.run(
            stage,
            config=config,
            accelerator=Accelerator(cpu=True),
            out=out,
            options=trainer.RunOptions(name="slope", label="slope", seed=0, **options),
            stop=stop,
        )
    )


def weight_in(folder: Path) -> float:
    return json.loads((folder / "weight.json").read_text())


@pytest.mark.parametrize("bad", [NAN, math.inf, 1e3])
def test_a_step_with_a_bad_gradient_is_skipped(tmp_path, bad) -> None:
    config = replace(CONFIG, num_steps=4, skip_grad_norm=100.0, ema_decay=0.5)
    reports = run(Slope([1.0, bad, 1.0, 1.0]), tmp_path / "spoilt", config)
    assert [report.was_skipped for report in reports] == [False, True, False, False]
    assert [report.skipped for report in reports] == [0, 1, 1, 1]
    assert reports[0].grad_norm == pytest.approx(1)
    # AdamW takes a whole step of the learning rate where gradients are equal.
    spoilt = Slope([1.0, bad, 1.0, 1.0])
    run(spoilt, tmp_path / "again", replace(config, ema_decay=0.0))
    assert float(spoilt.weight) == pytest.approx(1 - 3 * 0.1, abs=1e-4)


def test_gradient_norms_are_unlimited_by_default(tmp_path) -> None:
    reports = run(Slope([1.0, 1e3] * 3), tmp_path)
    assert not any(report.was_skipped for report in reports)
    assert reports[1].grad_norm == pytest.approx(1e3), "before it is scaled down"


def test_too_many_in_a_row_end_the_run_with_a_reason(tmp_path) -> None:
    config = replace(CONFIG, max_skipped_steps=3)
    stage = Slope([1.0, NAN, NAN, 1.0, NAN, NAN])
    assert run(stage, tmp_path / "apart", config)[-1].skipped == 4
    stage = Slope([1.0, NAN, NAN, NAN, 1.0, 1.0])
    said = "got 3 consecutive steps where they were not, the last with loss nan .* at step 4"
    with pytest.raises(InputError, match=said):
        run(stage, tmp_path / "row", config)
    assert float(stage.weight) == pytest.approx(0.9, abs=1e-4), "the weights are still good"


def test_skipped_steps_are_remembered_when_a_run_continues(tmp_path) -> None:
    config = replace(CONFIG, max_skipped_steps=3)
    stops = iter([False, False, True])
    first = run(Slope([1.0, NAN, NAN, 1.0, 1.0, 1.0]), tmp_path, config, stop=lambda: next(stops))
    assert first[-1].stopped
    with pytest.raises(InputError, match="got 3 consecutive steps"):
        run(Slope([NAN] * 6), tmp_path, config)


def test_the_weights_of_the_lowest_validation_loss_are_kept(tmp_path) -> None:
    def parabola(weight: Any) -> Any:
        return (weight - 0.7) ** 2

    stops = iter([False] * 3 + [True])
    first = run(
        Slope([1.0] * 6, parabola), tmp_path, validate_every=1, stop=lambda: next(stops)
    )  # fmt: skip
    assert [report.best is not None for report in first] == [True, True, True, False]
    assert first[0].best == tmp_path / "best"
    # What was best before the stop stays so.
    rest = run(Slope([1.0] * 6, parabola), tmp_path, validate_every=1)
    assert [report.best for report in rest] == [None, None]
    assert weight_in(tmp_path / "best") == pytest.approx(0.7, abs=1e-3)
    assert weight_in(tmp_path / "model") == pytest.approx(0.4, abs=1e-3)


def test_settings_that_make_no_sense_are_rejected() -> None:
    with pytest.raises(InputError, match="last_batch must be 'fill' or 'short', got 'drop'"):
        replace(CONFIG, last_batch="drop")
    with pytest.raises(InputError, match="max_skipped_steps must be at least 1, got 0"):
        replace(CONFIG, max_skipped_steps=0)
