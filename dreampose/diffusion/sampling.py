"""Sampling: a generator of steps over any model and diffusers scheduler. Knows no UNets or Ray."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dreampose.errors import InputError
from dreampose.types import Model, Scheduler


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where the sampler stands after a call of the model.

    index: calls made before this one, from 0. num_steps: calls in all (second-order schedulers
    make more than the inference steps asked for). latents: after this step.
    """

    index: int
    num_steps: int
    timestep: float
    latents: Float[Tensor, "b c h w"]


def prepare_scheduler(
    scheduler: Scheduler, num_steps: int, device: torch.device | str = "cpu"
) -> Scheduler:
    """A copy with its timesteps set, so that no history is shared between requests.

    Raises:
        InputError: `num_steps` is not positive or the scheduler refuses it.
    """
    if num_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_steps}")
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_steps, device=device)
    except ValueError as error:
        raise InputError(
            f"num_inference_steps must suit {type(scheduler).__name__}, got {num_steps} ({error})"
        ) from error
    return scheduler


def num_model_calls(scheduler: Scheduler, num_steps: int) -> int:
    """How often `denoise` will call the model."""
    return len(prepare_scheduler(scheduler, num_steps).timesteps)


def denoise(
    model: Model,
    noise: Float[Tensor, "b c h w"],
    scheduler: Scheduler,
    num_steps: int,
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Runs the scheduler from pure noise to latents, yielding after every call of the model.

    Args:
        model: (x, t) -> prediction of the scheduler's `prediction_type`.
        noise: unit normal, one sample per frame.
        scheduler: left untouched: a copy keeps the history of multistep methods.
        num_steps: inference steps.
        seeds: one per sample, for schedulers that add noise on the way. Equal seeds draw equal
            noise, whatever the batch, so that frames sampled apart agree. Required by those
            schedulers only.

    Raises:
        InputError: `num_steps` is not positive or the scheduler refuses it.
    """
    scheduler = prepare_scheduler(scheduler, num_steps, noise.device)
    assert seeds is None or len(seeds) == len(noise)
    extra: dict[str, object] = {}
    if seeds is not None and "generator" in inspect.signature(scheduler.step).parameters:
        # On the CPU, so that the device does not change the draw.
        extra["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if seeds is not None and hasattr(scheduler, "noise_sampler_seed"):
        # DPMSolverSDEScheduler draws from a Brownian tree: one per sample here as well.
        setattr(scheduler, "noise_sampler_seed", list(seeds))  # noqa: B010
    latents = noise * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, timestep)
        prediction = model(scaled, timestep)
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
        yield Step(
            index=index,
            num_steps=len(scheduler.timesteps),
            timestep=float(timestep),
            latents=latents,
        )
