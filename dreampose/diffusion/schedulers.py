"""Noising, prediction targets, and diffusers' schedulers by name. Knows nothing of models."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers import PNDMScheduler, SchedulerMixin
from jaxtyping import Float, Int64
from torch import Tensor

from dreampose.errors import InputError
from dreampose.types import Scheduler

ZERO_SNR = "rescale_betas_zero_snr"
LEAST_SIGNAL = 2.0**-24
"""What alpha_bar is at a last timestep of noise alone, as in diffusers' solvers."""
REVERSED = ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler")
"""Schedulers that add noise instead of removing it."""


def noise_process(options: Mapping[str, Any]) -> PNDMScheduler:
    """The scheduler that a recipe's models are trained and saved with (paper: PNDM).

    Args:
        options: `Recipe.scheduler`. With `rescale_betas_zero_snr` the noise of all timesteps grows
            so that nothing of the image is left at the last one (Lin et al. 2023, arXiv 2305.08891,
            algorithm 1); the new betas are kept as `trained_betas`, which every scheduler reads.

    Raises:
        InputError: noise is to be predicted where there is nothing else.
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
    """Betas whose signal is shifted to nothing at the end and scaled to begin as before."""
    signal = alphas_cumprod.double().sqrt()
    first, last = signal[0].item(), signal[-1].item()
    signal = (signal - last) * first / (first - last)
    # Solvers take its logarithm.
    kept = signal.square().clamp(min=LEAST_SIGNAL)
    return [1 - kept[0].item(), *(1 - kept[1:] / kept[:-1]).tolist()]


def add_noise(
    scheduler: Scheduler,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int64[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps, one timestep per sample."""
    signal, sigma = _rates(scheduler, latents, timesteps)
    return signal * latents + sigma * noise


def training_target(
    scheduler: Scheduler,
    latents: Float[Tensor, "b c h w"],
    noise: Float[Tensor, "b c h w"],
    timesteps: Int64[Tensor, " b"],
) -> Float[Tensor, "b c h w"]:
    """What the denoiser learns to predict, by the scheduler's `prediction_type`.

    'epsilon': the noise (the paper); 'v_prediction': sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0
    (Salimans & Ho 2022); 'sample': z_0.

    Raises:
        InputError: the scheduler's configuration names another type.
    """
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return latents
    if kind == "v_prediction":
        signal, sigma = _rates(scheduler, latents, timesteps)
        return signal * noise - sigma * latents
    raise InputError(f"prediction_type must be 'epsilon', 'v_prediction' or 'sample', got {kind!r}")


def _rates(
    scheduler: Scheduler, latents: Float[Tensor, "b c h w"], timesteps: Int64[Tensor, " b"]
) -> tuple[Float[Tensor, "b 1 1 1"], Float[Tensor, "b 1 1 1"]]:
    alpha_bar = scheduler.alphas_cumprod.to(latents.device, torch.float32)[
        timesteps.to(latents.device)
    ]
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt().to(latents), (1 - alpha_bar).sqrt().to(latents)


def scheduler_names() -> tuple[str, ...]:
    """Class names of every diffusers scheduler that can sample these models.

    They are those built on the same noise process: they take the betas that the weights were
    trained with, and step from (prediction, timestep, sample) alone. Flow-matching, token and
    inverse schedulers belong to other models.
    """
    return tuple(name for name in dir(diffusers) if _is_usable(name))


def _is_usable(name: str) -> bool:
    if not name.endswith("Scheduler") or name in REVERSED:
        return False
    scheduler = getattr(diffusers, name)
    if not isinstance(scheduler, type) or not issubclass(scheduler, SchedulerMixin):
        # Needs a package that is not installed: diffusers puts a stand-in there.
        return False
    if "beta_start" not in inspect.signature(scheduler.__init__).parameters:
        return False
    step = inspect.signature(getattr(scheduler, "step")).parameters  # noqa: B009
    required = [key for key, value in step.items() if value.default is inspect.Parameter.empty]
    return required == ["self", "model_output", "timestep", "sample"]


def scheduler_by_name(name: str, base_config: Mapping[str, Any], **kwargs: Any) -> Scheduler:
    """A diffusers scheduler with the noise process of `base_config`.

    Args:
        name: a class name such as 'DPMSolverMultistepScheduler'; see `scheduler_names`.
        base_config: the model's own scheduler configuration: betas, prediction type, offsets.
        **kwargs: options of that class, such as `timestep_spacing`; they win over `base_config`.

    Raises:
        InputError: no such scheduler, or it has no such option; near names are listed.
    """
    names = scheduler_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"near: {', '.join(near)}" if near else f"one of {', '.join(names)}"
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
    # Latents are not pixels: clipping them to [-1, 1], some classes' default, would destroy them.
    defaults = {"clip_sample": False} if "clip_sample" in options else {}
    return scheduler.from_config({**defaults, **config}, **kwargs)
