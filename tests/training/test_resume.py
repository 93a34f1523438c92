"""Exact resuming of a stopped run."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from safetensors.torch import load_file

from dreampose import training
from dreampose.config import Recipe, replace


def run(stage, recipe, data, out, *, steps=5, stop_after=None, **options):
    reports = []
    for report in training.train(
        stage,
        recipe=recipe,
        data=data,
        out=out,
        accelerator=Accelerator(cpu=True),
        max_steps=steps,
        stop=lambda: stop_after is not None and len(reports) + 1 >= stop_after,
        **options,
    ):
        reports.append(report)
    return reports


@pytest.mark.parametrize("stage", training.STAGES)
def test_stopped_run_continues_bit_exactly(
    stage: str, tiny_recipe: Recipe, tiny_data: Path, tmp_path: Path
) -> None:
    field = f"{stage}_stage"
    config = replace(
        getattr(tiny_recipe, field),
        gradient_accumulation=2,
        ema_decay=0.9,
        lr_schedule="cosine",
        warmup_steps=2,
    )
    recipe = replace(tiny_recipe, **{field: config})
    whole = run(stage, recipe, tiny_data, tmp_path / "whole")
    first = run(stage, recipe, tiny_data, tmp_path / "parts", stop_after=2)
    assert [report.step for report in first] == [1, 2]
    assert first[-1].checkpoint is not None
    assert not (tmp_path / "parts" / "model").exists()
    second = run(stage, recipe, tiny_data, tmp_path / "parts")

    assert [report.step for report in whole] == [1, 2, 3, 4, 5]
    assert [report.loss for report in first + second] == [report.loss for report in whole]
    for component in ("vae", "unet", "adapter", "image_encoder"):
        files = [
            next((tmp_path / name / "model" / component).glob("*.safetensors"))
            for name in ("whole", "parts")
        ]
        expected, got = (load_file(file) for file in files)
        assert all((expected[key] == got[key]).all() for key in expected)
    assert run(stage, recipe, tiny_data, tmp_path / "parts") == []
