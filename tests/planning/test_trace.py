"""Traces against what the real allocator, the paper and the optimizers say."""

import gc

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dreampose import config, planning, recipes
from dreampose.config import Savings
from dreampose.planning import costs, trace
from dreampose.planning.trace import Trace, measure
from dreampose.training.savings import make_optimizer, moment_bytes


def really_measure(build, run):
    """The same as `trace.measure`, of real tensors: all that the CPU's allocator was asked for."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as first:
        subject = build()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second:
        run(subject)
    held, _ = allocated(first)
    _, peak = allocated(second)
    return Trace(held_bytes=held, peak_bytes=held + peak, flops=0)


def allocated(profiler):
    """Bytes that are there at the end, and at most."""
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return live, peak


@pytest.fixture
def recipe(tiny_recipe):
    """Large frames for few weights, so that activations are what counts."""
    stage = config.replace(tiny_recipe.base_stage, ema_decay=0.9, gradient_accumulation=2)
    return config.replace(tiny_recipe, height=512, width=384, base_stage=stage)


def base_step(recipe, **savings):
    return planning.training_step("base", recipe, savings=Savings(**savings))


def decoder_step(recipe):
    return planning.subject_decoder_step(recipe)


def chunk(recipe):
    return planning.rendering(recipe, num_calls=1, chunk_size=3)


unconfirmed = pytest.mark.xfail(
    reason="on the CPU a real run allocated a third to twice as much as was traced, and the base "
    "stage's noise process has no values there: not understood yet"
)


@unconfirmed
@pytest.mark.parametrize("work", [base_step, decoder_step, chunk])
def test_traced_memory_is_what_a_real_run_allocates(work, recipe, monkeypatch):
    traced = work(recipe)
    monkeypatch.setattr(costs, "measure", really_measure)
    real = work(recipe)
    assert traced.held_bytes == pytest.approx(real.held_bytes, rel=0.02)
    assert traced.peak_bytes == pytest.approx(real.peak_bytes, rel=0.1)
    assert traced.peak_bytes > 2 * traced.held_bytes, "activations must be what counts"


@unconfirmed
def test_recomputing_activations_saves_what_the_trace_says(recipe, monkeypatch):
    kept, again = base_step(recipe), base_step(recipe, gradient_checkpointing=True)
    assert again.flops > 1.2 * kept.flops
    monkeypatch.setattr(costs, "measure", really_measure)
    real = base_step(recipe, gradient_checkpointing=True)
    assert again.peak_bytes == pytest.approx(real.peak_bytes, rel=0.1)
    assert again.peak_bytes < 0.8 * kept.peak_bytes


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_moments_take_what_the_optimizer_really_keeps(name):
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    layer = nn.Linear(100, 77)  # a large tensor of no round size, and a small one
    savings = Savings(optimizer=name)
    optimizer = make_optimizer(layer.parameters(), recipes.sd14().base_stage, savings)
    layer(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    for value in layer.parameters():
        kept = [
            entry
            for key, entry in optimizer.state[value].items()
            if isinstance(entry, torch.Tensor) and key != "step"
        ]
        assert moment_bytes(value.numel(), savings) == sum(x.numel() * x.itemsize for x in kept)


def test_mixed_precision_is_that_of_gpus():
    """Convolutions in half precision, norms and what follows in float32; weights are cast."""
    layers = nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.SiLU())

    def run(_):
        with trace.mixed_precision("bf16"):
            x = torch.zeros(1, 8, 64, 64)
            assert layers[0](x).dtype == torch.bfloat16
            assert layers(x).dtype == torch.float32

    measure(lambda: None, run)


def test_operations_of_the_paper_model_are_those_counted_before():
    """TFLOP at 640x512: a call of the UNet 1.04, encoding 1.41, decoding 3.15 (torch's counter)."""
    recipe = recipes.sd14()
    one = planning.rendering(recipe, num_calls=1, chunk_size=1, join_branches=False)
    two = planning.rendering(recipe, num_calls=2, chunk_size=1, join_branches=False)
    assert (two.flops - one.flops) / 1e12 == pytest.approx(3 * 1.04, rel=0.01)
    clip = 0.0088  # ViT-B/32
    assert one.flops / 1e12 == pytest.approx(3 * 1.04 + 1.41 + 3.15 + clip, rel=0.01)
    assert sum(one.parameters.values()) == pytest.approx(1.03e9, rel=0.01)
