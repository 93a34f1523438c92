"""Distances between two frames as a network sees them. Knows nothing of files or clips.

Images are RGB floats in [0, 1], `(b, 3, H, W)`, taken at the resolution in which they come unless
said otherwise; every function can be differentiated, so it can serve as a loss.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from dreampose.metrics.backbones import ResNet50, Slices, normalise
from dreampose.metrics.efficientnet import EfficientNetLite0


def vgg_distance(
    network: Slices, pred: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """Mean absolute difference of VGG-19's relu1_1 ... relu5_1, the five averaged.

    Range: 0 upwards. Resolution: as given, at least 16x16. Colours: RGB in [0, 1], ImageNet's mean
    and deviation. Backbone: vgg19-dcbb9e9d.pth (SHA-256 begins dcbb9e9d).
    Source: the perceptual distance of Johnson et al. 2016 (arXiv 1603.08155) as Siarohin et al.
    2019 (arXiv 2003.00196, eq. 4) take it, at one resolution. The paper's column VGG does not state
    its layers, so its figures need not be on this scale.
    """
    first, second = network(normalise(pred)), network(normalise(truth))
    distances = [(a - b).abs().mean(dim=(1, 2, 3)) for a, b in zip(first, second, strict=True)]
    return torch.stack(distances).mean(dim=0)


def lpips(
    network: Slices,
    heads: Sequence[Float[Tensor, "1 _ 1 1"]],
    pred: Float[Tensor, "b 3 H W"],
    truth: Float[Tensor, "b 3 H W"],
) -> Float[Tensor, " b"]:
    """LPIPS 0.1 on AlexNet: learned weights on squared differences of unit feature vectors.

    Range: 0 upwards, below 1 in practice. Resolution: as given, at least 32x32. Colours: RGB in
    [-1, 1] through LPIPS' own mean and deviation. Backbone: alexnet-owt-7be5be79.pth (SHA-256
    begins 7be5be79), heads alex.pth 0.1 (df73285e). Source: Zhang et al. 2018 (arXiv 1801.03924);
    equals the package `lpips`. The paper does not state its backbone; AlexNet is the default.
    """
    first, second = network(_lpips_scale(pred)), network(_lpips_scale(truth))
    return torch.stack(
        [
            (_squared_difference(a, b) * head.to(a)).sum(dim=1).mean(dim=(1, 2))
            for a, b, head in zip(first, second, heads, strict=True)
        ]
    ).sum(dim=0)


def lpips_lite(
    network: EfficientNetLite0, pred: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """LPIPS' formula without learned heads on the five stages of EfficientNet-Lite0, averaged.

    Range: 0 to 4. Resolution: as given, at least 32x32. Colours: RGB in [0, 1], (level - 127) /
    128. Backbone: efficientnet-lite0-57934424.pth (SHA-256 begins 57934424).
    Source: this project, after Zhang et al. 2018, eq. 1 with all weights equal. Its figures do not
    compare with LPIPS of any backbone.
    """
    first, second = network.stages(pred), network.stages(truth)
    return torch.stack(
        [
            _squared_difference(a, b).sum(dim=1).mean(dim=(1, 2))
            for a, b in zip(first, second, strict=True)
        ]
    ).mean(dim=0)


def identity_embedding(
    network: ResNet50, images: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, "b 2048"]:
    """A person's embedding for re-identification: pictures at 288x144, ImageNet's mean."""
    fitted = functional.interpolate(
        images, size=(288, 144), mode="bicubic", antialias=True, align_corners=False
    )
    return network(normalise(fitted.clamp(0, 1)))


def average_identity_distance(
    network: ResNet50, pred: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """AED: how far a person-re-identification network puts the two frames' people apart.

    The mean absolute difference of the 2048 features, which is what the published code computes
    (`cmp.py`), though the name says Euclidean.

    Range: 0 upwards. Resolution: 288x144, bicubic, sides scaled apart. Colours: RGB in [0, 1],
    ImageNet's mean and deviation. Backbone: reid_model.pth, ResNet-50 on Market-1501 (no hash is
    published; the report prints the file's). Source: Siarohin's pose-evaluation, as MRAA uses it
    (arXiv 2104.11280). DreamPose does not state its network or whether features are normalised.
    """
    distance = identity_embedding(network, pred) - identity_embedding(network, truth)
    return distance.abs().mean(dim=1)


def _squared_difference(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Squared difference of feature vectors scaled to length 1 in every cell."""
    return (unit_length(a) - unit_length(b)).square()


def unit_length(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Feature vectors of every cell scaled to length 1; those of length 0 stay."""
    # The small number inside keeps the gradient finite where a cell is all zeros.
    length = (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
    return x / (length + 1e-10)


def _lpips_scale(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    shift = torch.tensor([-0.030, -0.088, -0.188]).to(images)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).to(images)[:, None, None]
    return (images * 2 - 1 - shift) / scale
