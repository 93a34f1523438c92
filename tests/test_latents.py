"""The VAE codec and its scale."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from dreampose.latents import LatentCodec, calibrate, pass_colours

FOUR = (4, 4, 8, 8)


def kl(**options):
    return AutoencoderKL(
        block_out_channels=FOUR,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        **options,
    ).eval()


def tiny(**options):
    return AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
        **options,
    ).eval()


@pytest.fixture
def images():
    return torch.rand(6, 3, 32, 24) * 2 - 1


@torch.no_grad()
def test_stable_diffusions_scale_is_a_factor(images):
    vae = kl(scaling_factor=0.18215)
    expected = vae.encode(images).latent_dist.mode() * 0.18215
    latents = LatentCodec(vae=vae).encode(images)
    torch.testing.assert_close(latents, expected)
    decoded = LatentCodec(vae=vae).decode(latents)
    torch.testing.assert_close(decoded, vae.decode(expected / 0.18215).sample)


@torch.no_grad()
@pytest.mark.parametrize("make", [kl, tiny])
def test_calibrated_latents_have_unit_variance_and_decode_alike(make, images, tmp_path):
    vae = make()
    raw = vae.encode(images)
    raw = raw.latents if make is tiny else raw.latent_dist.mode()
    calibrate(vae, images)
    vae.save_pretrained(tmp_path)
    loaded = LatentCodec(vae=type(vae).from_pretrained(tmp_path))
    latents = loaded.encode(images)
    assert abs(latents.mean()) < 1e-3
    assert abs(latents.std() - 1) < 0.02
    if make is kl:
        assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.02
    torch.testing.assert_close(loaded.decode(latents), vae.decode(raw).sample, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_encoding_is_deterministic_unless_a_generator_draws(images):
    codec = LatentCodec(vae=kl())
    assert torch.equal(codec.encode(images), codec.encode(images))
    drawn = [codec.encode(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@torch.no_grad()
def test_a_light_autoencoder_starts_as_a_small_colour_copy(images):
    vae = tiny()
    pass_colours(vae)
    means = torch.nn.functional.avg_pool2d(images, 8)
    copy = vae.decode(vae.encode(images).latents).sample
    expected = torch.nn.functional.interpolate(means, scale_factor=8)
    # The decoder bends latents beyond one with a tanh; random channels add next to nothing.
    assert (copy - expected).abs().max() < 0.05
