"""Moving average and learning rate against those of diffusers."""

import pytest
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from dreampose import recipes
from dreampose.config import replace
from dreampose.training.state import MovingAverage
from dreampose.training.trainer import learning_rate

STAGE = replace(recipes.catwalk().base_stage, learning_rate=1.0, warmup_steps=10)


def test_moving_average_has_the_decay_of_diffusers():
    parameter = nn.Parameter(torch.randn(5, 3))
    average = MovingAverage({"weight": parameter}, decay=0.5)
    diffusers = EMAModel([parameter], decay=0.5)
    for step in range(1, 20):
        with torch.no_grad():
            parameter.add_(torch.randn(5, 3))
        average.update(step)
        # diffusers counts its own updates; this counts optimizer steps, skipped ones included.
        diffusers.optimization_step = step
        diffusers.step([parameter])
        torch.testing.assert_close(average.shadow["weight"], diffusers.shadow_params[0])


def test_moving_average_can_be_on_another_device_unlike_diffusers():
    parameter = nn.Parameter(torch.ones(3))
    average = MovingAverage({"weight": parameter}, decay=0.5, device="meta")
    average.update(1)
    assert average.shadow["weight"].device.type == "meta"
    diffusers = EMAModel([parameter], decay=0.5)
    diffusers.to("meta")
    diffusers.optimization_step = 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        diffusers.step([parameter])


def test_learning_rate_starts_above_zero_and_ends_at_a_tenth_unlike_diffusers():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=10, num_training_steps=100)
    theirs = []
    for _ in range(100):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [learning_rate(STAGE, step, 100) for step in range(100)]
    assert theirs[0] == 0
    assert ours[0] == pytest.approx(0.1)
    assert ours[10:] == pytest.approx([0.1 + 0.9 * rate for rate in theirs[10:]])
    assert ours[-1] == pytest.approx(0.1, abs=1e-3)
