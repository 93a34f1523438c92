"""Training in less memory learns the same."""

import importlib.util

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dreampose import training
from dreampose.config import Savings, replace
from dreampose.errors import InputError
from dreampose.training import memory as ways
from dreampose.training.state import MovingAverage


def run(recipe, data, out, *, stop_after=None, **savings):
    """Three steps of the base stage: reports, and the weights that they leave."""
    stage = replace(recipe.base_stage, ema_decay=0.9, gradient_accumulation=2, learning_rate=1e-2)
    reports = []
    for report in training.train(
        "base",
        recipe=replace(recipe, base_stage=stage),
        data=data,
        out=out,
        accelerator=Accelerator(cpu=True),
        max_steps=3,
        stop=lambda: stop_after is not None and len(reports) + 1 >= stop_after,
        savings=Savings(**savings),
    ):
        reports.append(report)
    files = sorted((out / "model" / "unet").glob("*.safetensors"))
    return [report.loss for report in reports], load_file(files[0]) if files else {}


def test_recomputed_activations_and_an_average_on_the_cpu_change_nothing(
    tiny_recipe, tiny_data, tmp_path
):
    losses, weights = run(tiny_recipe, tiny_data, tmp_path / "plain")
    saved_losses, saved = run(
        tiny_recipe, tiny_data, tmp_path / "saved",
        gradient_checkpointing=True, average_on_cpu=True,
    )  # fmt: skip
    assert saved_losses == pytest.approx(losses, rel=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(saved[key], value, rtol=1e-4, atol=1e-6)


def test_8_bit_adam_learns_about_the_same_and_resumes_exactly(tiny_recipe, tiny_data, tmp_path):
    pytest.importorskip("bitsandbytes")
    losses, plain = run(tiny_recipe, tiny_data, tmp_path / "plain")
    whole_losses, whole = run(tiny_recipe, tiny_data, tmp_path / "whole", optimizer="adamw8bit")
    assert whole_losses == pytest.approx(losses, rel=0.05)
    assert any(not torch.equal(whole[key], plain[key]) for key in plain)

    first, _ = run(tiny_recipe, tiny_data, tmp_path / "parts", optimizer="adamw8bit", stop_after=2)
    second, parts = run(tiny_recipe, tiny_data, tmp_path / "parts", optimizer="adamw8bit")
    assert first + second == whole_losses
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_a_disabled_moving_average_takes_no_memory():
    parameters = {"a": torch.nn.Parameter(torch.ones(3))}
    assert MovingAverage(parameters, 0.0).shadow == {}
    assert MovingAverage(parameters, 0.5).shadow["a"].tolist() == [1, 1, 1]


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package bitsandbytes.*low-memory"):
        ways.check(Savings(optimizer="adamw8bit"))


def test_precision_follows_the_machine_only_with_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert [ways.mixed_precision(name) for name in ("auto", "fp32", "bf16")] == [
        "bf16",
        "no",
        "bf16",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [ways.mixed_precision(name) for name in ("auto", "bf16")] == ["no", "bf16"]
