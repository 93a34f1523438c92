"""VAE codec, latent scale, and initialisation of the small VAE."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn

VAE = AutoencoderKL | AutoencoderTiny

LATENT_SCALE = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""Entries of a VAE's configuration that define how raw latents are scaled."""


_OPPONENT = (
    torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) / torch.tensor([[3.0], [2], [6]]).sqrt()
)
"""Luminance and two colour differences, orthonormal."""

_GREY = 0.8
"""About the mean of studio photos with pixels in [0, 1]; latents are centred on it."""

Frequency = tuple[int, int, int]
"""Vertical and horizontal frequency in half waves per block, and index of the opponent colour."""

_MAX_BATCH_PIXELS = 2**20
"""Pixels per encoder batch: three images of 640x512, whose activations take 3 GB."""


def encode_batch_size(height: int, width: int, at_most: int) -> int:
    """Number of images to encode in one batch, limited by memory.

    Args:
        height: in pixels.
        width: in pixels.
        at_most: upper limit of the batch size.
    """
    return max(1, min(at_most, _MAX_BATCH_PIXELS // (height * width)))


@dataclass(frozen=True, kw_only=True)
class LatentCodec:
    """Encodes images in [-1, 1] into latents of about unit variance, and decodes them.

    The only owner of the latent scale. With the raw latent r of the VAE and its mean m, standard
    deviation s, shift a and factor f, the scaled latent is ((r - m) / s - a) * f. All four are read
    from the VAE's configuration (m and s per channel), so a saved VAE keeps its normalisation.

    Attributes:
        vae: encoder and decoder.
        image_range: the VAE's values for black and white; some published weights use (0, 1).
    """

    vae: VAE
    image_range: tuple[float, float] = (-1.0, 1.0)

    def encode(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Encodes images into scaled latents.

        Args:
            images: pixels in [-1, 1]; height and width are multiples of the VAE's downscaling.
            generator: samples the posterior of an `AutoencoderKL`; None takes its mode.
        """
        return self._encode_raw(self.to_range(images).to(self.vae.dtype), generator)

    def to_range(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Maps pixels from [-1, 1] to the VAE's `image_range`."""
        if self.image_range == (-1.0, 1.0):
            return images
        low, high = self.image_range
        return (images + 1) / 2 * (high - low) + low

    def encode_zeros(
        self, height: int, width: int, device: torch.device | None = None
    ) -> Float[Tensor, "1 c h w"]:
        """Encodes an image whose values are 0 in the VAE's own range.

        Args:
            height: in pixels.
            width: in pixels.
            device: where to compute, by default the VAE's device.
        """
        zeros = torch.zeros(
            1, 3, height, width, device=device or self.vae.device, dtype=self.vae.dtype
        )
        return self._encode_raw(zeros, None)

    def _encode_raw(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None
    ) -> Float[Tensor, "b c h w"]:
        # Frames arrive with channels last, where GroupNorm on the CPU is off by up to 3e-3.
        images = images.contiguous()
        if isinstance(self.vae, AutoencoderTiny):
            # encode(), because forward() also quantises the latents to bytes.
            raw = self.vae.encode(images, return_dict=False)[0]
        else:
            posterior = self.vae.encode(images, return_dict=False)[0]
            raw = posterior.mode() if generator is None else posterior.sample(generator)
        mean, deviation = self._statistics(raw)
        return ((raw - mean) / deviation - self._shift) * self._factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Decodes scaled latents into images of about [-1, 1], not clipped."""
        latents = latents.to(self.vae.dtype)
        mean, deviation = self._statistics(latents)
        raw = (latents / self._factor + self._shift) * deviation + mean
        decoded: Tensor = self.vae.decode(raw, return_dict=False)[0]  # pyright: ignore[reportArgumentType, reportAssignmentType]
        if self.image_range == (-1.0, 1.0):
            return decoded
        low, high = self.image_range
        return (decoded - low) / (high - low) * 2 - 1

    @property
    def _factor(self) -> float:
        return float(self.vae.config["scaling_factor"])

    @property
    def _shift(self) -> float:
        return float(self.vae.config.get("shift_factor") or 0.0)

    def _statistics(
        self, like: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "#c 1 1"], Float[Tensor, "#c 1 1"]]:
        mean = self.vae.config.get("latents_mean") or (0.0,)
        deviation = self.vae.config.get("latents_std") or (1.0,)
        return like.new_tensor(mean)[:, None, None], like.new_tensor(deviation)[:, None, None]


def is_cosine_encoder(vae: VAE) -> bool:
    """Whether the encoder is a fixed linear transform (an `AutoencoderTiny` without blocks)."""
    return isinstance(vae, AutoencoderTiny) and not any(vae.config["num_encoder_blocks"])


@torch.no_grad()
def init_cosine_transform(vae: AutoencoderTiny) -> None:
    """Initialises an `AutoencoderTiny` without encoder blocks as a block cosine transform.

    The encoder, which is linear, becomes the discrete cosine transform of JPEG: blocks of one
    latent cell, opponent colours, one coefficient per latent channel in the order of
    `_frequencies`. It is not trained further, so latents can be cached before the decoder is
    trained, and a retrained decoder still fits the models that produce such latents.

    The decoder is initialised to upsample the mean colour of each cell; residual branches start at
    zero, all other weights stay random. From random weights alone the L1 error first drives the
    output to grey, where it stays for thousands of steps.
    """
    assert is_cosine_encoder(vae)
    if vae.device.type == "meta":
        return
    kept, gain = _init_encoder(vae)
    _init_decoder(vae, kept, gain)


def _init_encoder(vae: AutoencoderTiny) -> tuple[list[Frequency], Float[Tensor, " k"]]:
    """Sets the encoder's weights; returns the frequency and the gain of each latent channel."""
    convolutions: list[Any] = [x for x in vae.encoder.layers if isinstance(x, nn.Conv2d)]
    first, *halvings, last = convolutions
    for layer in convolutions:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    first.weight[:3, :, 1, 1] = _OPPONENT
    inputs = [(0, 0, colour) for colour in range(3)]
    for level, layer in enumerate(halvings, start=1):
        outputs = _frequencies(2**level)[: layer.out_channels]
        for row in range(2):
            for column in range(2):
                # With stride 2 and padding 1, the last two rows and columns belong to the cell.
                layer.weight[: len(outputs), : len(inputs), 1 + row, 1 + column] = _merge_weights(
                    outputs, inputs, 2**level, row, column
                )
        inputs = outputs
    kept = inputs[: last.out_channels]
    amplitude = torch.tensor([_amplitude(*frequency) for frequency in kept])
    # Geometric mean of unit variance and the true relative amplitudes; the largest spans [-1, 1].
    gain = 0.8 * (amplitude * amplitude.max()).rsqrt()
    centre = torch.tensor([3**0.5 * 2 ** len(halvings) * _GREY] + [0.0] * (len(kept) - 1))
    index = torch.arange(len(kept))
    last.weight[index, index, 1, 1] = gain
    last.bias[index] = -gain * centre
    return kept, gain


def _init_decoder(
    vae: AutoencoderTiny, kept: Sequence[Frequency], gain: Float[Tensor, " k"]
) -> None:
    """Sets the decoder's weights so that it upsamples the mean colour of each cell."""
    size = 2 ** (len(vae.config["encoder_block_out_channels"]) - 1)
    decoder: list[Any] = [x for x in vae.decoder.layers if isinstance(x, nn.Conv2d)]
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            for parameter in block.conv[-1].parameters():
                parameter.zero_()
    # Channels that carry the mean colour from the first layer to the last.
    carriers = torch.arange(min(12, decoder[0].out_channels // 3 * 3))
    colours = carriers % 3
    for layer in decoder[1:-1]:
        layer.weight[carriers] = 0.0
        layer.weight[carriers, carriers, 1, 1] = 1.0
    means = [k for k, (row, column, _) in enumerate(kept) if row == column == 0]
    decoder[0].weight[carriers] = 0.0
    decoder[0].bias[carriers] = _GREY
    for k in means:
        decoder[0].weight[carriers, k, 1, 1] = _OPPONENT[kept[k][2], colours] / (size * gain[k])
    decoder[-1].weight *= 0.1
    decoder[-1].weight[:, carriers] = 0.0
    decoder[-1].weight[colours, carriers, 1, 1] = 3 / len(carriers)
    decoder[-1].bias.zero_()


def _amplitude(row: int, column: int, colour: int) -> float:
    """Standard deviation of a DCT coefficient of 8x8 blocks, fitted to catwalk frames.

    Measured: luminance 2.41 (mean), 0.82 (0, 1), 0.44 (0, 2), 0.43 (1, 0), 0.26 (1, 1); colours
    0.45 to 0.50 (mean), 0.14 to 0.15 (0, 1), 0.09 (1, 0). Horizontal frequencies are stronger
    because standing figures have vertical edges.
    """
    return (0.15 if colour else 0.85) / max(column + 2 * row, 0.35)


def _frequencies(size: int) -> list[Frequency]:
    """Frequencies of a block of `size` pixels, those of largest amplitude first."""
    everything = itertools.product(range(size), range(size), range(3))
    return sorted(everything, key=lambda f: (-_amplitude(*f), f[2], f))


def _merge_weights(
    outputs: Sequence[Frequency], inputs: Sequence[Frequency], size: int, row: int, column: int
) -> Float[Tensor, "k n"]:
    """Weights from the coefficients of one quarter to those of the block of `size` pixels."""
    return torch.tensor(
        [
            [
                _overlap(a, d, size, row) * _overlap(b, e, size, column) if c == f else 0.0
                for d, e, f in inputs
            ]
            for a, b, c in outputs
        ]
    )


def _overlap(wave: int, half_wave: int, size: int, index: int) -> float:
    """Dot product of a cosine over `size` pixels and one over its half number `index`."""
    half = size // 2
    part = _cosine(wave, size)[index * half : (index + 1) * half]
    return float(part @ _cosine(half_wave, half))


def _cosine(wave: int, length: int) -> Float[np.ndarray, " length"]:
    """Orthonormal DCT-II basis vector with `wave` half waves."""
    angles = np.pi * wave * (np.arange(length) + 0.5) / length
    return np.cos(angles) * np.sqrt((2 if wave else 1) / length)


@torch.no_grad()
def calibrate(vae: VAE, images: Float[Tensor, "b 3 H W"]) -> None:
    """Sets the VAE's latent scale so that latents of these images have unit variance.

    `AutoencoderKL` stores mean and standard deviation per channel, `AutoencoderTiny` one factor
    and one shift. Call it after a VAE is trained and before latents are cached.

    Args:
        vae: its configuration is changed in place.
        images: pixels in the VAE's own range.
    """
    vae.register_to_config(scaling_factor=1.0)
    if isinstance(vae, AutoencoderTiny):
        vae.register_to_config(shift_factor=0.0)
        raw = LatentCodec(vae=vae).encode(images)
        vae.register_to_config(
            scaling_factor=1.0 / max(raw.std().item(), 1e-6), shift_factor=raw.mean().item()
        )
        return
    vae.register_to_config(shift_factor=None, latents_mean=None, latents_std=None)
    raw = LatentCodec(vae=vae).encode(images)
    vae.register_to_config(
        latents_mean=raw.mean((0, 2, 3)).tolist(),
        latents_std=raw.std((0, 2, 3)).clamp_min(1e-6).tolist(),
    )
