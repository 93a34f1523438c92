"""The refiner: decoded picture and warped photo to a frame."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Refiner(ModelMixin, ConfigMixin):
    """Mixes the decoded picture with the warped photo, pixel by pixel, and corrects the sum.

    The decoder cannot draw what its latents do not hold; the warped photo holds it where a photo
    backs the surface. A network at half the resolution, with one level below it, says how much of
    the warp each pixel takes and what is added. It is convolutional and works on pictures of any
    size that is a multiple of 4. At first, a pixel takes as much of the warp as its confidence says
    and nothing is added.
    """

    @register_to_config
    def __init__(self, width: int = 32, deep_width: int = 48, num_blocks: int = 1) -> None:
        super().__init__()
        self.enter = nn.Conv2d(_INPUTS, 16, 3, padding=1)
        self.down = nn.Conv2d(4 * 16, width, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.deeper = nn.Conv2d(width, deep_width, 3, stride=2, padding=1)
        self.deep_blocks = nn.ModuleList(_Block(deep_width) for _ in range(num_blocks))
        self.back = nn.Conv2d(deep_width, width, 1)
        self.up = nn.Conv2d(2 * width, 4 * 8, 3, padding=1)
        self.leave = nn.Conv2d(16 + 8, 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        assert self.leave.bias is not None
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        decoded: Float[Tensor, "b 3 H W"],
        warped: Float[Tensor, "b 3 H W"],
        confidence: Float[Tensor, "b 1 H W"],
        body: Float[Tensor, "b 1 H W"],
    ) -> Float[Tensor, "b 3 H W"]:
        """Frames about in [-1, 1], not clipped.

        Args:
            decoded: the decoder's picture, brought to the frame's size; where there is none, the
                warp itself.
            warped: the photo warped into the frame's pose.
            confidence: in [0, 1], how far a photo backs each pixel of `warped`.
            body: 1 where the body is, else 0.
        """
        known = confidence * 2 - 1
        x = torch.cat([decoded, warped, (warped - decoded) * confidence, known, body], dim=1)
        # Twice as fast on CPUs.
        x = x.contiguous(memory_format=torch.channels_last)
        fine = functional.relu(self.enter(x))
        half = functional.relu(self.down(functional.pixel_unshuffle(fine, 2)))
        for block in self.blocks:
            half = block(half)
        deep = functional.relu(self.deeper(half))
        for block in self.deep_blocks:
            deep = block(deep)
        wide = functional.interpolate(self.back(deep), scale_factor=2.0, mode="nearest")
        whole = functional.relu(self.up(torch.cat([half, wide], dim=1)))
        out = self.leave(torch.cat([fine, functional.pixel_shuffle(whole, 2)], dim=1))
        # Zero output: as much of the warp as its confidence.
        share = torch.sigmoid(4 * known + out[:, 3:])
        return decoded + share * (warped - decoded) + out[:, :3]


_INPUTS = 11
"""Channels of decoded picture, warp, their weighted difference, confidence and body."""


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.second(functional.relu(self.first(x)))
