"""The VAE codec and its scale."""

import numpy as np
import pytest
import scipy.fft
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from dreampose.models.vae import LatentCodec, calibrate, init_cosine_transform, is_cosine_encoder

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
def test_a_light_encoder_without_blocks_is_the_cosine_transform(images):
    vae = linear(16, 32)
    init_cosine_transform(vae)
    latents = vae.encode(images).latents.numpy()
    # The same written plainly: opponent colours, then the orthonormal transform of 8x8 blocks.
    pixels = images.numpy() / 2 + 0.5
    blocks = pixels.reshape(len(pixels), 3, 4, 8, 3, 8).transpose(0, 2, 4, 1, 3, 5)
    brightness = blocks.sum(-3) / 3**0.5
    difference = (blocks[..., 0, :, :] - blocks[..., 2, :, :]) / 2**0.5
    for channel, colour, row, column in (
        (0, brightness, 0, 0),
        (1, brightness, 0, 1),
        (2, difference, 0, 0),
        (5, brightness, 1, 0),
        (7, brightness, 1, 1),
        (14, difference, 0, 1),
    ):
        expected = scipy.fft.dctn(colour, axes=(-2, -1), norm="ortho")[..., row, column]
        got = latents[:, channel]
        gain, offset = np.polyfit(expected.ravel(), got.ravel(), 1)
        assert gain > 0.1
        np.testing.assert_allclose(got, gain * expected + offset, atol=1e-5)


@torch.no_grad()
def test_a_light_autoencoder_starts_as_a_small_colour_copy(images):
    vae = linear(16, 32)
    init_cosine_transform(vae)
    # Not too far from grey: the decoder bends strong latents with a tanh.
    images = images * 0.2 + 0.5
    means = torch.nn.functional.avg_pool2d(images, 8)
    copy = vae.decode(vae.encode(images).latents).sample
    expected = torch.nn.functional.interpolate(means, scale_factor=8)
    assert (copy - expected).abs().max() < 0.05
    assert not is_cosine_encoder(tiny())
    assert not is_cosine_encoder(kl())


def linear(latent_channels, width):
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=(0,) * 4,
        num_decoder_blocks=(1,) * 4,
        latent_channels=latent_channels,
    ).eval()
