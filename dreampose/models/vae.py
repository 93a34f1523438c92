"""The VAE codec: images to scaled latents and back. Knows nothing of diffusion or poses.

Sole owner of the latent scale: every factor, shift and per-channel statistic is read from the
VAE's own configuration, so a saved VAE carries its normalisation with it.
"""

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
"""Entries of a VAE's configuration that say how raw latents are scaled."""


_PIXELS_AT_ONCE = 2**20
"""Of images that are encoded together: three of 640x512, whose activations then take 3 GB."""


def images_at_once(height: int, width: int, at_most: int) -> int:
    """How many images of a size are encoded together."""
    return max(1, min(at_most, _PIXELS_AT_ONCE // (height * width)))


@dataclass(frozen=True, kw_only=True)
class LatentCodec:
    """Encodes images in [-1, 1] into latents of about unit variance, and decodes them.

    With the VAE's raw latent r, mean m, deviation s, shift a and factor f (all from its
    configuration; m, s are per channel), the scaled latent is ((r - m) / s - a) * f.

    image_range: what -1 and 1 are to the VAE; some published weights were trained on [0, 1].
    """

    vae: VAE
    image_range: tuple[float, float] = (-1.0, 1.0)

    def encode(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Scaled latents of images in [-1, 1].

        Args:
            images: any H, W that are multiples of the VAE's downscaling.
            generator: draws from an `AutoencoderKL`'s posterior; without it, its mode is taken.
        """
        return self._encode_raw(self.to_range(images).to(self.vae.dtype), generator)

    def to_range(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Images in [-1, 1] as the VAE sees them."""
        if self.image_range == (-1.0, 1.0):
            return images
        low, high = self.image_range
        return (images + 1) / 2 * (high - low) + low

    def blank(
        self, height: int, width: int, device: torch.device | None = None
    ) -> Float[Tensor, "1 c h w"]:
        """Scaled latents of an image whose every value is 0 to the VAE, which computes there."""
        where = device or self.vae.device
        zeros = torch.zeros(1, 3, height, width, device=where, dtype=self.vae.dtype)
        return self._encode_raw(zeros, None)

    def _encode_raw(
        self, images: Float[Tensor, "b 3 H W"], generator: torch.Generator | None
    ) -> Float[Tensor, "b c h w"]:
        if isinstance(self.vae, AutoencoderTiny):
            # Its forward() would quantise to bytes; encode() does not.
            raw = self.vae.encode(images, return_dict=False)[0]
        else:
            posterior = self.vae.encode(images, return_dict=False)[0]
            raw = posterior.mode() if generator is None else posterior.sample(generator)
        mean, deviation = self._statistics(raw)
        return ((raw - mean) / deviation - self._shift) * self._factor

    def decode(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images, about in [-1, 1] and not clipped, from scaled latents."""
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
    """Whether the VAE's encoder is a fixed transform: it has no residual blocks to learn in."""
    return isinstance(vae, AutoencoderTiny) and not any(vae.config["num_encoder_blocks"])


@torch.no_grad()
def start_as_cosines(vae: AutoencoderTiny) -> None:
    """Sets the weights so that latents are the block cosine transform that JPEG uses.

    An encoder without residual blocks is linear. It becomes the transform of blocks of as many
    pixels as a latent cell has, in opponent colours, of which the strongest coefficients are kept:
    one a latent channel, in the order of `_frequencies`. There is nothing left to train in it, so
    latents can be cached before the decoder is trained, and a decoder can be trained further
    without any harm to models that make such latents.

    The decoder starts as a colour copy of that size: carrier channels bring the mean colour
    through, residual branches start at zero, all other weights stay random. From purely random
    weights an absolute error first learns grey, the median of all colours, and stays there for
    thousands of steps.
    """
    assert is_cosine_encoder(vae)
    if vae.device.type == "meta":
        return
    convolutions: list[Any] = [x for x in vae.encoder.layers if isinstance(x, nn.Conv2d)]
    first, *halvings, last = convolutions
    for layer in convolutions:
        layer.weight.zero_()
        if layer.bias is not None:
            layer.bias.zero_()
    first.weight[:3, :, 1, 1] = _OPPONENT
    known = [(0, 0, colour) for colour in range(3)]
    for level, layer in enumerate(halvings, start=1):
        kept = _frequencies(2**level)[: layer.out_channels]
        for row in range(2):
            for column in range(2):
                # With stride 2 and padding 1, the last two rows and columns are the cell's own.
                layer.weight[: len(kept), : len(known), 1 + row, 1 + column] = _refine(
                    kept, known, 2**level, row, column
                )
        known = kept
    size = 2 ** len(halvings)
    kept = known[: last.out_channels]
    strength = torch.tensor([_strength(*frequency) for frequency in kept])
    # Weaker coefficients are raised half-way to the strongest, which spans about [-1, 1].
    gain = 0.8 * (strength * strength.max()).rsqrt()
    centre = torch.tensor([3**0.5 * size * _GREY] + [0.0] * (len(kept) - 1))
    index = torch.arange(len(kept))
    last.weight[index, index, 1, 1] = gain
    last.bias[index] = -gain * centre

    decoder: list[Any] = [x for x in vae.decoder.layers if isinstance(x, nn.Conv2d)]
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            for parameter in block.conv[-1].parameters():
                parameter.zero_()
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


_OPPONENT = (
    torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]) / torch.tensor([[3.0], [2], [6]]).sqrt()
)
"""Brightness and two colour differences, orthonormal."""

_GREY = 0.8
"""About the mean of a studio picture with pixels in [0, 1]; latents are centred there."""

Frequency = tuple[int, int, int]
"""Half waves down and across a block, and which of the opponent colours."""


def _strength(row: int, column: int, colour: int) -> float:
    """Deviation of a coefficient of 8x8 blocks over catwalk frames, by a formula that fits them.

    Measured: brightness 2.41 (mean), 0.82 (0, 1), 0.44 (0, 2), 0.43 (1, 0), 0.26 (1, 1); colours
    0.45 to 0.50 (mean), 0.14 to 0.15 (0, 1), 0.09 (1, 0). People stand: columns tell more.
    """
    return (0.15 if colour else 0.85) / max(column + 2 * row, 0.35)


def _frequencies(size: int) -> list[Frequency]:
    """Those of a block, strongest first."""
    everything = itertools.product(range(size), range(size), range(3))
    return sorted(everything, key=lambda f: (-_strength(*f), f[2], f))


def _refine(
    kept: Sequence[Frequency], known: Sequence[Frequency], size: int, row: int, column: int
) -> Float[Tensor, "k n"]:
    """What a quarter's coefficients add to those of the whole block of `size` pixels."""
    half = size // 2

    def basis(wave: int, length: int) -> Float[np.ndarray, " length"]:
        angles = np.pi * wave * (np.arange(length) + 0.5) / length
        return np.cos(angles) * np.sqrt((2 if wave else 1) / length)

    def share(wave: int, quarter_wave: int, place: int) -> float:
        whole = basis(wave, size)[place * half : (place + 1) * half]
        return float(whole @ basis(quarter_wave, half))

    return torch.tensor(
        [
            [share(a, d, row) * share(b, e, column) if c == f else 0.0 for d, e, f in known]
            for a, b, c in kept
        ]
    )


@torch.no_grad()
def calibrate(vae: VAE, images: Float[Tensor, "b 3 H W"]) -> None:
    """Writes into the VAE's configuration what gives latents of these images unit variance.

    `AutoencoderKL` keeps mean and deviation per channel; `AutoencoderTiny` has room for one
    factor and one shift. Called once, after a VAE is trained and before latents are cached.
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
