"""Samplers against the loops in diffusers' documentation."""

import diffusers
import pytest
import torch

from dreampose import recipes
from dreampose.diffusion.guidance import guide
from dreampose.diffusion.sampling import denoise
from dreampose.diffusion.schedulers import scheduler_by_name, scheduler_names
from dreampose.models.unet import Denoiser
from dreampose.types import Conditions

SCHEDULERS = [
    "PNDMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
]
STOCHASTIC = {"DDPMScheduler", "EulerAncestralDiscreteScheduler"}
BASE = recipes.sd14().scheduler


def velocity_of_ones(x, t):
    """A smooth model: its prediction depends on the latents and the time."""
    return 0.7 * x + 0.3 * (x + 1e-3 * t).sin()


def run(name, noise, steps=4, **options):
    # A hundred training steps instead of a thousand: some tables are slow to make.
    scheduler = scheduler_by_name(name, {**BASE, "num_train_timesteps": 100})
    return list(denoise(velocity_of_ones, noise, scheduler, steps, **options))[-1].latents


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_equals_the_plain_loop(name, prediction_type):
    noise = torch.randn(2, 4, 8, 6)
    base = {**BASE, "prediction_type": prediction_type}
    steps = denoise(velocity_of_ones, noise, scheduler_by_name(name, base), 7, seeds=[5, 5])
    actual = list(steps)[-1].latents

    extra = {"clip_sample": False} if name in ("DDIMScheduler", "DDPMScheduler") else {}
    pndm = diffusers.PNDMScheduler(**base)
    scheduler = getattr(diffusers, name).from_config(pndm.config, **extra)
    scheduler.set_timesteps(7)
    latents = noise * scheduler.init_noise_sigma
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for t in scheduler.timesteps:
        prediction = velocity_of_ones(scheduler.scale_model_input(latents, t), t)
        kwargs = {"generator": generators} if name in STOCHASTIC else {}
        latents = scheduler.step(prediction, t, latents, **kwargs).prev_sample
    assert latents.isfinite().all()
    assert torch.equal(actual, latents)


def test_the_papers_sampler_with_the_papers_guidance(tiny_pipeline):
    """PNDM, three branches per step, s_I = 8, s_p = 3, on a UNet."""
    unet, scheduler = tiny_pipeline.unet, tiny_pipeline.scheduler
    tokens, poses = torch.randn(2, 5, 16), torch.rand(2, 10, 8, 6)
    noise = torch.randn(1, 8, 8, 6).expand(2, -1, -1, -1)
    model = guide(Denoiser(unet=unet), Conditions(tokens=tokens, poses=poses), 8.0, 3.0)
    with torch.no_grad():
        actual = list(denoise(model, noise, scheduler, 6))[-1].latents

    plain = diffusers.PNDMScheduler.from_config(scheduler.config)
    plain.set_timesteps(6)
    latents = noise.clone()
    with torch.no_grad():
        for t in plain.timesteps:  # pyright: ignore[reportOptionalIterable]

            def eps(c_i, c_p, z=latents, t=t):
                return unet(torch.cat([z, c_p], 1), t, encoder_hidden_states=c_i).sample

            null_i, null_p = torch.zeros_like(tokens), torch.zeros_like(poses)
            prediction = (
                eps(null_i, null_p)
                + 8 * (eps(tokens, null_p) - eps(null_i, null_p))
                + 3 * (eps(tokens, poses) - eps(tokens, null_p))
            )
            latents = plain.step(prediction, t, latents).prev_sample
    torch.testing.assert_close(actual, latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_gives_a_frame_the_same_whatever_its_batch(name):
    noise = torch.randn(1, 4, 8, 6)
    alone = run(name, noise, seeds=[3])
    batch = run(name, noise.expand(3, -1, -1, -1), seeds=[3, 3, 3])
    assert alone.isfinite().all()
    for frame in batch:
        assert torch.equal(frame, alone[0])


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_stochastic_schedulers_follow_their_seed(name):
    noise = torch.randn(1, 4, 8, 6)
    assert not torch.equal(run(name, noise, seeds=[1]), run(name, noise, seeds=[2]))


def test_all_karras_schedulers_of_this_noise_process_are_there():
    from diffusers.schedulers import KarrasDiffusionSchedulers

    names = {member.name for member in KarrasDiffusionSchedulers}
    # EDM has its own noise process; the SDE solver needs torchsde, which is not installed.
    assert names - set(scheduler_names()) <= {"EDMEulerScheduler", "DPMSolverSDEScheduler"}
