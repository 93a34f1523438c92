"""The published networks that scores look through, in their files' layout. Knows nothing of scores.

VGG-19 and AlexNet as far as their last convolution, ResNet-50 for pictures and for videos as far as
its pooled features: all that a score needs, without torchvision.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from dreampose.errors import InputError

_VGG19 = (64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M", 512, 512, 512, 512, "M", 512)
"""Channels of the 3x3 convolutions, `M` a max-pooling; as far as relu5_1."""
_RESNET50 = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and stride of the four layers."""


class Slices(nn.Module):
    """A chain of layers of which some outputs are wanted; named `features.N` as in torchvision.

    Args:
        layers: the chain.
        wanted: indices of the layers whose outputs `forward` gives.
    """

    def __init__(self, layers: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.wanted = tuple(wanted)

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The wanted outputs, in order."""
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.wanted:
                found.append(x)
        return found


def vgg19() -> Slices:
    """VGG-19's relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, with random weights."""
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
    """AlexNet's five rectified convolutions, with random weights."""
    layers = (
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    return Slices(layers, (1, 4, 7, 9, 11))


class ResNet50(nn.Module):
    """ResNet-50 as far as its 2048 pooled features, for pictures or for 16-frame windows.

    Args:
        dimensions: 2 for pictures `(b, 3, H, W)`; 3 for videos `(b, 3, t, H, W)`, the layout of
            Hara et al. 2018 (arXiv 1711.09577).
        weights: as in the files that carry the whole network.
    """

    def __init__(self, *, dimensions: int) -> None:
        super().__init__()
        assert dimensions in (2, 3)
        video = dimensions == 3
        convolution, norm = (nn.Conv3d, nn.BatchNorm3d) if video else (nn.Conv2d, nn.BatchNorm2d)
        # The first layer of the video network keeps the frame rate.
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
        """Mean of the last layer over space (and time)."""
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
    """Puts published weights into a network and freezes it.

    What the file holds beyond the network, its classifier, is left; whatever the network has must
    be in the file.

    Args:
        network: with the names of the published file.
        state: the file's tensors.
        prefix: what the file puts before every name.

    Raises:
        InputError: a weight of the network is missing or has another shape.
    """
    named = {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
    wanted = network.state_dict()
    # Checkpoints older than torch 0.4.1 do not count the batches their norms have seen.
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
    """RGB in [0, 1] to the mean 0 and deviation 1 of ImageNet."""
    mean = torch.tensor([0.485, 0.456, 0.406]).to(images)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225]).to(images)[:, None, None]
    return (images - mean) / deviation
