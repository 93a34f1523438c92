"""Traced costs against the allocator, the paper and the optimizers."""

import functools
import gc

import pytest
import torch
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks import tracing
from benchmarks.tracing import Trace, measure
from dreampose import config, recipes
from dreampose.config import Savings
from dreampose.training.memory import make_optimizer, moment_bytes


def really_measure(build, run):
    """The same as `tracing.measure`, of real tensors: all that the CPU's allocator was asked for.

    What an operation took for itself and gave back before it ended is its scratch.
    """
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as first:
        subject = build()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as second:
        run(subject)
    held = sum(size for _, _, size, _ in allocations(first))
    events = allocations(second)
    scratch = scratch_of(events)
    kept = [event for number, event in enumerate(events) if number not in scratch]
    return Trace(
        held_bytes=held,
        peak_bytes=held + most_at_once(kept),
        scratch_bytes=most_at_once(events) - most_at_once(kept),
        flops=0,
    )


def allocations(profiler):
    """(time, address, bytes, operation) of every allocation, and with negative bytes every release.

    The operation is the one that was under way, above its kernels' parts, or `None`.
    """
    found = []

    def walk(event, operation):
        fields = event.extra_fields
        if event.tag == _EventType.Allocation:
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size, operation))
            return
        if operation is None and event.tag == _EventType.TorchOp and is_operation(event.name):
            operation = (event.name, event.start_time_ns)
        for child in event.children:
            walk(child, operation)

    for event in profiler.profiler.kineto_results.experimental_event_tree():
        walk(event, None)
    return sorted(found)


@functools.cache
def is_operation(name):
    """Whether it does something itself, instead of calling other operations on tensors."""
    overloads = [
        full
        for full in torch._C._dispatch_get_all_op_names()
        if full == name or full.startswith(f"{name}.")
    ]
    return not all(
        torch._C._dispatch_has_kernel_for_dispatch_key(full, "CompositeImplicitAutograd")
        for full in overloads
    )


def scratch_of(events):
    """Numbers of the events that are about memory which did not outlive its operation."""
    taken, scratch = {}, set()
    for number, (_, address, size, operation) in enumerate(events):
        if size > 0:
            taken[address] = number
            continue
        start = taken.pop(address, None)
        if start is not None and operation is not None and events[start][3] == operation:
            scratch |= {start, number}
    return scratch


def most_at_once(events):
    live = peak = 0
    for _, _, size, _ in events:
        live += size
        peak = max(peak, live)
    return peak


@pytest.fixture
def recipe(tiny_recipe):
    """Large frames for few weights, so that activations are what counts.

    Channels are multiples of 16, as in all real recipes: the CPU's convolutions pad them to that.
    """
    stage = config.replace(tiny_recipe.base_stage, ema_decay=0.9, gradient_accumulation=2)
    channels = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    return config.replace(
        tiny_recipe,
        height=256,
        width=192,
        vae={**tiny_recipe.vae, **channels},
        unet={**tiny_recipe.unet, "block_out_channels": (16, 32)},
        base_stage=stage,
    )


def base_step(recipe, **savings):
    return tracing.training_step("base", recipe, savings=Savings(**savings))


def decoder_step(recipe):
    return tracing.subject_decoder_step(recipe)


def chunk(recipe):
    return tracing.rendering(recipe, num_calls=1, chunk_size=3)


def really(monkeypatch):
    monkeypatch.setattr(tracing, "measure", really_measure)


@pytest.mark.parametrize("work", [base_step, decoder_step, chunk])
def test_traced_memory_equals_that_of_a_real_run(work, recipe, monkeypatch):
    traced = work(recipe)
    really(monkeypatch)
    real = work(recipe)
    assert traced.held_bytes == pytest.approx(real.held_bytes, rel=0.01)
    assert traced.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert traced.peak_bytes > 2 * traced.held_bytes, "activations must be what counts"
    assert real.scratch_bytes <= traced.scratch_bytes


def test_gradient_checkpointing_saves_the_traced_memory(recipe, monkeypatch):
    kept, again = base_step(recipe), base_step(recipe, gradient_checkpointing=True)
    assert again.flops > 1.2 * kept.flops
    really(monkeypatch)
    real = base_step(recipe, gradient_checkpointing=True)
    assert again.peak_bytes == pytest.approx(real.peak_bytes, rel=0.01)
    assert again.peak_bytes < 0.6 * kept.peak_bytes


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_moments_have_the_size_of_the_optimizers_state(name):
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
        with tracing.mixed_precision("bf16"):
            x = torch.zeros(1, 8, 64, 64)
            assert layers[0](x).dtype == torch.bfloat16
            assert layers(x).dtype == torch.float32

    measure(lambda: None, run)


def test_what_is_computed_again_in_mixed_precision_has_the_same_types(recipe):
    """Torch refuses to go back through activations of other types than the first time."""
    savings = Savings(gradient_checkpointing=True)
    kept = tracing.training_step("base", recipe, precision="bf16")
    again = tracing.training_step("base", recipe, precision="bf16", savings=savings)
    assert again.flops > 1.2 * kept.flops
    assert again.peak_bytes < kept.peak_bytes


def test_operations_of_the_paper_model_are_those_counted_before():
    """TFLOP at 640x512: a call of the UNet 1.04, encoding 1.41, decoding 3.15 (torch's counter)."""
    recipe = recipes.sd14()
    one = tracing.rendering(recipe, num_calls=1, chunk_size=1, join_branches=False)
    two = tracing.rendering(recipe, num_calls=2, chunk_size=1, join_branches=False)
    assert (two.flops - one.flops) / 1e12 == pytest.approx(3 * 1.04, rel=0.01)
    clip = 0.0088  # ViT-B/32
    assert one.flops / 1e12 == pytest.approx(3 * 1.04 + 1.41 + 3.15 + clip, rel=0.01)
    assert sum(one.parameters.values()) == pytest.approx(1.03e9, rel=0.01)
