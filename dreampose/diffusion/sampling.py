"""Sampling loop for any model and diffusers scheduler, as a generator."""

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
    """State of the sampler after one call of the model.

    Attributes:
        index: of the call, from 0.
        num_steps: total number of calls; second-order schedulers make more calls than inference
            steps.
        timestep: of the call.
        latents: result of the step.
    """

    index: int
    num_steps: int
    timestep: float
    latents: Float[Tensor, "b c h w"]


def prepare_scheduler(
    scheduler: Scheduler, num_steps: int, device: torch.device | str = "cpu"
) -> Scheduler:
    """Copies a scheduler and sets its timesteps; requests must not share a scheduler's state.

    Args:
        scheduler: not changed.
        num_steps: inference steps, at least 1.
        device: of the timesteps.

    Raises:
        InputError: `num_steps` is less than 1 or not supported by the scheduler.
    """
    if num_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_steps}")
    scheduler = copy.deepcopy(scheduler)
    try:
        scheduler.set_timesteps(num_steps, device=device)
    except ValueError as error:
        raise InputError(
            f"num_inference_steps must be supported by {type(scheduler).__name__}, "
            f"got {num_steps} ({error})"
        ) from error
    return scheduler


def num_model_calls(scheduler: Scheduler, num_steps: int) -> int:
    """Number of model calls that `denoise` makes with this scheduler."""
    return len(prepare_scheduler(scheduler, num_steps).timesteps)


def denoise(
    model: Model,
    noise: Float[Tensor, "b c h w"],
    scheduler: Scheduler,
    num_steps: int,
    *,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """Denoises from pure noise to latents, yielding after every call of the model.

    Args:
        model: (x, t) -> prediction of the scheduler's `prediction_type`.
        noise: standard normal, one sample per frame.
        scheduler: not changed; a copy holds the history of multistep methods.
        num_steps: inference steps, at least 1.
        seeds: one per sample, for schedulers that add noise in each step. Equal seeds draw equal
            noise in any batch, so frames sampled in different batches agree.

    Yields:
        The state after each call.

    Raises:
        InputError: `num_steps` is less than 1 or not supported by the scheduler.
    """
    scheduler = prepare_scheduler(scheduler, num_steps, noise.device)
    assert seeds is None or len(seeds) == len(noise)
    extra: dict[str, object] = {}
    if seeds is not None and "generator" in inspect.signature(scheduler.step).parameters:
        # CPU generators draw the same numbers for every device.
        extra["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    if seeds is not None and hasattr(scheduler, "noise_sampler_seed"):
        # DPMSolverSDEScheduler draws from a Brownian tree, here one per sample.
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
