"""Guidance against the paper's equation, and its number of branches."""

import pytest
import torch

from dreampose.diffusion.guidance import guide
from dreampose.types import Conditions


class Denoiser:
    """A nonlinear stand-in that counts the samples it is asked for."""

    def __init__(self) -> None:
        self.num_samples = 0
        self.num_calls = 0

    def __call__(self, x, t, conditions):
        self.num_calls += 1
        self.num_samples += len(x)
        token = conditions.tokens.sin().sum((1, 2))[:, None, None, None]
        pose = conditions.poses.cos().sum(1, keepdim=True)
        return (x * (1 + token) + pose * token + pose.sin() + t * 1e-3).tanh() + x


@pytest.fixture
def conditions():
    return Conditions(tokens=torch.randn(3, 5, 7), poses=torch.rand(3, 10, 8, 6))


@pytest.mark.parametrize("join", [True, False])
@pytest.mark.parametrize("image_scale", [0.0, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("pose_scale", [0.0, 1.0, 2.0, 3.0])
def test_equals_the_papers_equation(conditions, image_scale, pose_scale, join):
    eps, x, t = Denoiser(), torch.randn(3, 4, 8, 6), torch.tensor(500)
    no_image, no_pose = torch.zeros(3, 5, 7), torch.zeros(3, 10, 8, 6)
    image, pose = conditions.tokens, conditions.poses

    def predict(c_i, c_p):
        return eps(x, t, Conditions(tokens=c_i, poses=c_p))

    # eps(z, ∅, ∅) + s_I [eps(z, c_I, ∅) - eps(z, ∅, ∅)] + s_p [eps(z, c_I, c_p) - eps(z, c_I, ∅)]
    expected = predict(no_image, no_pose)
    expected = expected + image_scale * (predict(image, no_pose) - predict(no_image, no_pose))
    expected = expected + pose_scale * (predict(image, pose) - predict(image, no_pose))
    model = guide(Denoiser(), conditions, image_scale, pose_scale, join_branches=join)
    torch.testing.assert_close(model(x, t), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("image_scale", "pose_scale", "num_branches"),
    [(1.0, 1.0, 1), (0.0, 0.0, 1), (2.0, 2.0, 2), (1.0, 3.0, 2), (2.0, 0.0, 2), (8.0, 3.0, 3)],
)
def test_computes_only_the_branches_that_count(conditions, image_scale, pose_scale, num_branches):
    for join in (True, False):
        denoiser = Denoiser()
        model = guide(denoiser, conditions, image_scale, pose_scale, join_branches=join)
        model(torch.randn(3, 4, 8, 6), torch.tensor(500))
        assert denoiser.num_samples == 3 * num_branches
        assert denoiser.num_calls == (1 if join else num_branches)


def test_scales_of_one_are_the_plain_conditional_model(conditions):
    x, t = torch.randn(3, 4, 8, 6), torch.tensor(500)
    model = guide(Denoiser(), conditions, 1.0, 1.0)
    assert torch.equal(model(x, t), Denoiser()(x, t, conditions))
