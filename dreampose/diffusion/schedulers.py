"""Noise schedule, training targets, and diffusers schedulers by name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import PNDMScheduler, SchedulerMixin
from jaxtyping import Float, Int64
from torch import Tensor

from dreampose.errors import InputError
from dreampose.types import Scheduler

ZERO_SNR = "rescale_betas_zero_snr"
LEAST_SIGNAL = 2.0**-24
"""Value of alpha_bar at a last timestep with zero signal, as in diffusers' solvers."""
REVERSED = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")
"""Schedulers that add noise instead of removing it."""


def noise_process(options: Mapping[str, Any]) -> PNDMScheduler:
    """Makes the scheduler that a model is trained and saved with (paper: PNDM).

    Args:
        options: `Recipe.scheduler`. With `rescale_betas_zero_snr`, the betas are rescaled so that
            the last timestep has zero signal (Lin et al. 2023, arXiv 2305.08891, algorithm 1) and
            stored as `trained_betas`, which every scheduler reads.

    Raises:
        InputError: `rescale_betas_zero_snr` is combined with `prediction_type` 'epsilon'.
    """
    known = {key: value for key, value in options.items() if key != ZERO_SNR}
    process = PNDMScheduler(**known)
    if not options.get(ZERO_SNR):
        return process
    if (kind := process.config["prediction_type"]) == "epsilon":
        raise InputError(
            f"prediction_type must be 'v_prediction' or 'sample' with {ZERO_SNR}, got {kind!r}"
        )
    known["trained_betas"] = _zero_snr_betas(process.alphas_cumprod)
    return PNDMScheduler(**known)


def _zero_snr_betas(alphas_cumprod: Float[Tensor, " t"]) -> list[float]:
    """Rescales betas to zero terminal SNR, keeping the signal of the first timestep."""
    signal = alphas_cumprod.double().sqrt()
    first, last = signal[0].item(), signal[-1].item()
    signal = (signal - last) * first / (first - last)
    # Not exactly zero, because solvers take the logarithm.
    kept = signal.square().clamp(min=LEAST_SIGNAL)
    return [1 - kept[0].item(), *(1 - kept[1:] / kept[:-1]).tolist()]


def training_target(
    scheduler: Scheduler,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int64[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """Training target of the denoiser, by the scheduler's `prediction_type`.

    'epsilon': the noise (the paper); 'v_prediction': sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0
    (Salimans & Ho 2022); 'sample': z_0.

    Args:
        scheduler: its `alphas_cumprod` and `prediction_type` are used.
        latents: z_0, scaled latents.
        noise: eps.
        timesteps: one per sample.

    Raises:
        InputError: `prediction_type` is none of the three.
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        # PNDMScheduler, which models are saved with, has no get_velocity.
        alpha_bar = scheduler.alphas_cumprod.to(latents)[timesteps.to(latents.device)]
        alpha_bar = alpha_bar[:, None, None, None]
        return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents
    raise InputError(f"prediction_type must be 'epsilon', 'v_prediction' or 'sample', got {kind!r}")


def scheduler_names() -> tuple[str, ...]:
    """Class names of all diffusers schedulers that can sample these models.

    These accept the betas of training and a `step` of (prediction, timestep, sample). Schedulers
    for flow matching, discrete tokens or inversion are left out.
    """
    return tuple(name for name in dir(diffusers) if _is_usable(name))


def _is_usable(name: str) -> bool:
    if not name.endswith("Scheduler") or name in REVERSED:
        return False
    scheduler = getattr(diffusers, name)
    if not isinstance(scheduler, type) or not issubclass(scheduler, SchedulerMixin):
        # diffusers defines a dummy object if a package of the scheduler is not installed.
        return False
    if "beta_start" not in inspect.signature(scheduler.__init__).parameters:
        return False
    step = inspect.signature(getattr(scheduler, "step")).parameters  # noqa: B009
    required = [key for key, value in step.items() if value.default is inspect.Parameter.empty]
    return required == ["self", "model_output", "timestep", "sample"]


def scheduler_by_name(name: str, base_config: Mapping[str, Any], **kwargs: Any) -> Scheduler:
    """Makes a diffusers scheduler with the noise schedule of a model.

    Args:
        name: class name such as 'DPMSolverMultistepScheduler'; see `scheduler_names`.
        base_config: scheduler configuration of the model: betas, prediction type, offsets.
        **kwargs: options of the class, such as `timestep_spacing`; they override `base_config`.

    Raises:
        InputError: the scheduler or an option does not exist; similar names are listed.
    """
    names = scheduler_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"similar: {', '.join(near)}" if near else f"one of {', '.join(names)}"
        extra = " (it needs the package torchsde)" if "SDE" in name and "Solver" in name else ""
        raise InputError(f"scheduler must be a diffusers class name ({hint}), got {name!r}{extra}")
    scheduler = getattr(diffusers, name)
    options = set(inspect.signature(scheduler.__init__).parameters) - {"self"}
    unknown = set(kwargs) - options
    if unknown:
        raise InputError(
            f"scheduler options of {name} must be among {', '.join(sorted(options))}, "
            f"got {', '.join(sorted(unknown))}"
        )
    config = {key: value for key, value in base_config.items() if key in options}
    # Some classes clip to [-1, 1] by default, which is meant for pixels and would destroy latents.
    defaults = {"clip_sample": False} if "clip_sample" in options else {}
    return scheduler.from_config({**defaults, **config}, **kwargs)
