"""The step generator; its equality with diffusers' loops is in parity/."""

import pytest
import torch

from dreampose import recipes
from dreampose.diffusion.sampling import denoise, num_model_calls
from dreampose.diffusion.schedulers import scheduler_by_name
from dreampose.errors import InputError

BASE = recipes.sd14().scheduler


def half(x, t):
    return 0.5 * x


@pytest.mark.parametrize(
    ("name", "calls"),
    [("PNDMScheduler", 6), ("DDIMScheduler", 5), ("HeunDiscreteScheduler", 9)],
)
def test_yields_after_every_call_of_the_model(name, calls):
    scheduler = scheduler_by_name(name, BASE)
    steps = list(denoise(half, torch.randn(2, 4, 8, 6), scheduler, 5))
    assert len(steps) == calls == num_model_calls(scheduler, 5)
    assert [step.index for step in steps] == list(range(calls))
    assert {step.num_steps for step in steps} == {calls}
    assert steps[0].timestep > steps[-1].timestep


@pytest.mark.parametrize("name", ["PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_history_is_not_shared_between_runs_at_once(name):
    scheduler, noise = scheduler_by_name(name, BASE), torch.randn(1, 4, 8, 6)
    expected = list(denoise(half, noise, scheduler, 5))[-1].latents
    interrupted = denoise(half, noise, scheduler, 5)
    next(interrupted)
    next(interrupted)
    list(denoise(half, torch.randn(1, 4, 8, 6), scheduler, 7))
    assert torch.equal(list(interrupted)[-1].latents, expected)


def test_steps_that_the_scheduler_rejects_are_named():
    for steps in (0, 2000):
        with pytest.raises(InputError, match=f"num_inference_steps must .* got {steps}"):
            next(
                denoise(
                    half, torch.randn(1, 4, 8, 6), scheduler_by_name("DDIMScheduler", BASE), steps
                )
            )
