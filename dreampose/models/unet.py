"""The widened UNet: (x, t, conditions) -> prediction. Knows nothing of guidance or sampling."""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dreampose.types import Conditions


def widen(unet: UNet2DConditionModel, extra_channels: int) -> UNet2DConditionModel:
    """Adds input channels, in place, so that at first they change nothing.

    The new kernels are zero and the bias of the old convolution is kept (paper: 4 -> 14 channels,
    the ten of the five-pose window). Returns the same UNet.
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
    """Predicts what the scheduler's `prediction_type` names, for a batch of noisy latents."""

    unet: UNet2DConditionModel

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Shaped[Tensor, "*b"], conditions: Conditions
    ) -> Float[Tensor, "b c h w"]:
        """One forward of the UNet: the pose window is joined to the latents as channels.

        Args:
            x: noisy latents, as the scheduler scales them.
            t: timesteps, one for all or one per sample.
            conditions: of the same batch size.
        """
        inputs = torch.cat([x, conditions.poses.to(x)], dim=1).to(self.unet.dtype)
        tokens = conditions.tokens.to(inputs)
        return self.unet(inputs, t, encoder_hidden_states=tokens).sample.to(x.dtype)
