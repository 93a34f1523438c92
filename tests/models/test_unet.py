"""The denoiser: one call of the widened UNet."""

import torch

from dreampose.models.unet import Denoiser
from dreampose.types import Conditions


@torch.no_grad()
def test_each_sample_has_its_own_timestep(tiny_pipeline):
    denoiser = Denoiser(unet=tiny_pipeline.unet)
    x, tokens, poses = torch.randn(2, 8, 8, 6), torch.randn(2, 5, 16), torch.rand(2, 10, 8, 6)
    both = denoiser(x, torch.tensor([10, 900]), Conditions(tokens=tokens, poses=poses))
    for index, t in enumerate((10, 900)):
        one = Conditions(tokens=tokens[index : index + 1], poses=poses[index : index + 1])
        alone = denoiser(x[index : index + 1], torch.tensor(t), one)
        torch.testing.assert_close(both[index : index + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_weights_give_back_the_latents_own_type(tiny_pipeline):
    denoiser = Denoiser(unet=tiny_pipeline.unet.to(torch.bfloat16))
    conditions = Conditions(tokens=torch.randn(1, 5, 16), poses=torch.rand(1, 10, 8, 6))
    out = denoiser(torch.randn(1, 8, 8, 6), torch.tensor(10), conditions)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
