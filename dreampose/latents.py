"""The VAE codec: images to scaled latents and back. Knows nothing of diffusion or poses.

Sole owner of the latent scale: every factor, shift and per-channel statistic is read from the
VAE's own configuration, so a saved VAE carries its normalisation with it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from torch import Tensor, nn

VAE = AutoencoderKL | AutoencoderTiny


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

    def blank(self, height: int, width: int) -> Float[Tensor, "1 c h w"]:
        """Scaled latents of an image whose every value is 0 to the VAE."""
        zeros = torch.zeros(1, 3, height, width, device=self.vae.device, dtype=self.vae.dtype)
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


@torch.no_grad()
def pass_colours(vae: AutoencoderTiny) -> None:
    """Sets random weights so that the VAE starts as an eighth-size colour copy of the image.

    The first channels of every layer carry the mean colour through, residual branches start at
    zero, all other weights stay random. From purely random weights an absolute error first learns
    grey, the median of all colours, and stays there for thousands of steps.
    """
    encoder: list[Any] = [layer for layer in vae.encoder.layers if isinstance(layer, nn.Conv2d)]
    decoder: list[Any] = [layer for layer in vae.decoder.layers if isinstance(layer, nn.Conv2d)]
    num_carriers = min(12, encoder[0].out_channels // 3 * 3)
    carriers = torch.arange(num_carriers)
    colours = carriers % 3
    share = 3 / num_carriers
    for block in vae.modules():
        if isinstance(block, AutoencoderTinyBlock):
            for parameter in block.conv[-1].parameters():
                parameter.zero_()
    for layer in (encoder[0], *encoder[1:-1], *decoder[1:-1]):
        layer.weight[carriers] = 0.0
        if layer.bias is not None:
            layer.bias[carriers] = 0.0
    encoder[0].weight[carriers, colours, 1, 1] = 1.0
    for layer in encoder[1:-1]:
        # With stride 2 and padding 1, the last two rows and columns are the cell's own pixels.
        layer.weight[carriers, carriers, 1:, 1:] = 0.25
    for layer in decoder[1:-1]:
        layer.weight[carriers, carriers, 1, 1] = 1.0
    # Inside, pixels run from 0 to 1; latents should be centred, from -1 to 1.
    encoder[-1].weight[:3] = 0.0
    encoder[-1].weight[colours, carriers, 1, 1] = 2 * share
    encoder[-1].bias[:3] = -1.0
    decoder[0].weight[carriers] = 0.0
    decoder[0].weight[carriers, colours, 1, 1] = 0.5
    decoder[0].bias[carriers] = 0.5
    decoder[-1].weight *= 0.1
    decoder[-1].weight[:, carriers] = 0.0
    decoder[-1].weight[colours, carriers, 1, 1] = share
    decoder[-1].bias.zero_()


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
