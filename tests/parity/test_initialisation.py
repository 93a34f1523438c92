"""New layers do not change the base model at initialisation."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

from dreampose import checkpoints, recipes
from dreampose.models.adapter import ImageAdapter
from dreampose.models.unet import Denoiser, widen
from dreampose.types import Conditions


@pytest.mark.parametrize("pose", ["zeros", "random", "huge"])
def test_widened_unet_equals_the_unwidened_one(tiny_recipe, pose):
    unet = UNet2DConditionModel(**tiny_recipe.unet).eval()
    wide = widen(copy.deepcopy(unet), 10)
    x, tokens = torch.randn(2, 8, 8, 6), torch.randn(2, 5, 16)
    poses = {"zeros": 0.0, "random": 1.0, "huge": 1e4}[pose] * torch.rand(2, 10, 8, 6)
    timesteps = torch.tensor([3, 900])
    with torch.no_grad():
        expected = unet(x, timesteps, encoder_hidden_states=tokens).sample
        actual = Denoiser(unet=wide)(x, timesteps, Conditions(tokens=tokens, poses=poses))
    assert wide.config.in_channels == 18
    assert expected.abs().max() > 0.1
    assert (actual - expected).abs().max() <= 1e-6


def test_widened_unet_learns_to_use_the_pose(tiny_recipe):
    wide = widen(UNet2DConditionModel(**tiny_recipe.unet), 10)
    conditions = Conditions(tokens=torch.randn(1, 5, 16), poses=torch.rand(1, 10, 8, 6))
    Denoiser(unet=wide)(
        torch.randn(1, 8, 8, 6), torch.tensor(5), conditions
    ).square().sum().backward()
    assert (wide.conv_in.weight.grad[:, 8:].abs().amax(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("tokens", "width", "channels", "height", "columns"),
    [(50, 768, 4, 80, 64), (65, 192, 8, 20, 16), (5, 16, 8, 8, 6)],
)
def test_adapter_returns_the_clip_tokens_exactly(tokens, width, channels, height, columns):
    adapter = ImageAdapter(
        num_tokens=tokens,
        token_width=width,
        latent_channels=channels,
        latent_height=height,
        latent_width=columns,
    )
    clip = torch.randn(2, tokens, width)
    with torch.no_grad():
        actual = adapter(clip, torch.randn(2, channels, height, columns))
    assert torch.equal(actual, clip)


def test_paper_scale_adapter_has_the_papers_matrices():
    adapter = ImageAdapter()
    assert adapter.project.weight.shape == (768, 1280)
    assert torch.equal(adapter.mix.weight, torch.eye(50, 54))


def test_adapter_learns_to_use_the_latents():
    """A zero projection beside the zero mixing columns would leave both without a gradient."""
    adapter = ImageAdapter(
        num_tokens=5, token_width=16, latent_channels=4, latent_height=8, latent_width=6
    )
    clip, latents = torch.randn(2, 5, 16), torch.randn(2, 4, 8, 6)
    optimiser = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (adapter(clip, latents) - torch.randn(2, 5, 16)).square().mean().backward()
        optimiser.step()
    assert adapter.mix.weight[:, 5:].abs().min() > 0
    assert adapter.project.weight.grad.abs().max() > 0


def test_sd14_has_the_papers_size():
    with torch.device("meta"):
        pipe = checkpoints.build(recipes.sd14())
    widened = checkpoints.num_parameters(pipe)["unet"]
    extra = 10 * 320 * 3 * 3
    assert widened == 859_549_764
    assert widened - extra == 859_520_964, "Stable Diffusion 1.4 without the pose channels"
    assert pipe.unet.config.in_channels == 14
    assert pipe.unet.device.type == "meta"
