"""Denoising UNet with input channels for poses and the warped photo."""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from dreampose.types import Conditions


def widen(unet: UNet2DConditionModel, extra_channels: int) -> UNet2DConditionModel:
    """Adds zero-initialised input channels to a UNet, in place.

    The weights of the old channels and the bias are kept, so the output is at first independent of
    the new channels (paper: 4 -> 14 channels, ten of them for the five-pose window).

    Args:
        unet: changed in place.
        extra_channels: how many input channels to add.

    Returns:
        The same UNet.
    """
    old = unet.conv_in
    new = nn.Conv2d(
        old.in_channels + extra_channels,
        old.out_channels,
        kernel_size=old.kernel_size,  # pyright: ignore[reportArgumentType]
        stride=old.stride,  # pyright: ignore[reportArgumentType]
        padding=old.padding,  # pyright: ignore[reportArgumentType]
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    assert old.bias is not None
    assert new.bias is not None
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels].copy_(old.weight)
        new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=new.in_channels)
    return unet


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """Predicts noise, velocity or sample, as the scheduler's `prediction_type` says."""

    unet: UNet2DConditionModel

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "*b"], conditions: Conditions
    ) -> Float[Tensor, "b c h w"]:
        """Runs the UNet on latents, pose window and warped photo, concatenated by channels.

        Args:
            x: noisy latents, scaled by the scheduler.
            t: timestep, a scalar for the whole batch or one per sample.
            conditions: image tokens and pose maps with the same batch size.
        """
        parts = [x, conditions.poses.to(x)]
        if conditions.surface is not None:
            parts.append(conditions.surface.to(x))
        inputs = torch.cat(parts, dim=1)
        missing = int(self.unet.config["in_channels"]) - inputs.shape[1]
        if missing and conditions.surface is None:
            inputs = functional.pad(inputs, (0, 0, 0, 0, 0, missing))
        inputs = inputs.to(self.unet.dtype)
        tokens = conditions.tokens.to(inputs)
        return self.unet(inputs, t, encoder_hidden_states=tokens).sample.to(x.dtype)
