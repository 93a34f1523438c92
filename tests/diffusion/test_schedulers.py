"""Training targets and schedulers by name."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler

from dreampose import recipes
from dreampose.diffusion.schedulers import (
    noise_process,
    scheduler_by_name,
    scheduler_names,
    training_target,
)
from dreampose.errors import InputError

BASE = recipes.sd14().scheduler


@pytest.fixture
def noised():
    return torch.randn(3, 4, 8, 6), torch.randn(3, 4, 8, 6), torch.tensor([0, 500, 999])


def test_targets_equal_diffusers_and_recover_the_latents(noised):
    latents, noise, timesteps = noised
    for kind in ("epsilon", "sample", "v_prediction"):
        scheduler = PNDMScheduler(**{**BASE, "prediction_type": kind})
        target = training_target(scheduler, latents, noise, timesteps)
        if kind == "v_prediction":
            expected = DDPMScheduler.from_config(scheduler.config).get_velocity(*noised)
        else:
            expected = {"epsilon": noise, "sample": latents}[kind]
        torch.testing.assert_close(target, expected)


def test_unknown_prediction_type_is_rejected(noised):
    scheduler = PNDMScheduler(**BASE)
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(InputError, match=r"prediction_type must be .* got 'flow'"):
        training_target(scheduler, *noised)


def test_wrong_name_lists_near_ones():
    with pytest.raises(InputError, match=r"EulerDiscreteScheduler.*got 'EulerDiscretScheduler'"):
        scheduler_by_name("EulerDiscretScheduler", BASE)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "VQDiffusionScheduler", "x"])
def test_schedulers_of_other_models_are_rejected(name):
    with pytest.raises(InputError, match="scheduler must be"):
        scheduler_by_name(name, BASE)


def test_wrong_option_lists_the_right_ones():
    with pytest.raises(InputError, match=r"among .*solver_order.* got order"):
        scheduler_by_name("DPMSolverMultistepScheduler", BASE, order=2)


def test_keeps_the_noise_process_and_never_clips_latents():
    # A hundred training steps instead of a thousand: some tables are slow to make.
    base = {**BASE, "prediction_type": "v_prediction", "num_train_timesteps": 100}
    for name in scheduler_names():
        scheduler = scheduler_by_name(name, base)
        assert scheduler.config["beta_end"] == BASE["beta_end"]
        assert scheduler.config["beta_schedule"] == "scaled_linear"
        assert not scheduler.config.get("clip_sample")
        assert scheduler.config["prediction_type"] == "v_prediction"


def test_options_win_over_the_models_configuration():
    scheduler = scheduler_by_name("DDIMScheduler", BASE, timestep_spacing="trailing")
    assert scheduler.config["timestep_spacing"] == "trailing"


ZERO_SNR = {**BASE, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def test_zero_terminal_snr_is_that_of_diffusers():
    known = DDIMScheduler.from_config(PNDMScheduler(**BASE).config, rescale_betas_zero_snr=True)
    found = noise_process(ZERO_SNR).alphas_cumprod
    torch.testing.assert_close(found, known.alphas_cumprod, atol=1e-5, rtol=0)
    assert 0 < found[-1] < 1e-7
    unchanged = noise_process({**ZERO_SNR, "rescale_betas_zero_snr": False})
    torch.testing.assert_close(unchanged.alphas_cumprod, PNDMScheduler(**BASE).alphas_cumprod)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_a_perfect_denoiser_leads_from_noise_alone_to_the_image(name, noised):
    """At the first step nothing of the image is left, so that the prediction alone brings it."""
    base = noise_process(ZERO_SNR).config
    scheduler = scheduler_by_name(name, base, timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps[0] == 999
    latents, noise, _ = noised
    state = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(state, timestep)
        alpha_bar = noise_process(ZERO_SNR).alphas_cumprod[int(timestep)]
        signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        rest = (seen - signal * latents) / sigma
        state = scheduler.step(signal * rest - sigma * latents, timestep, state).prev_sample
    torch.testing.assert_close(state, latents, atol=0.15, rtol=0)  # DDIM leaves the first timestep


def test_epsilon_prediction_is_invalid_at_zero_snr():
    with pytest.raises(InputError, match=r"prediction_type must be 'v_prediction' or 'sample' wi"):
        noise_process({**ZERO_SNR, "prediction_type": "epsilon"})
