"""Perceptual distances between frames, and identity retrieval.

Images are RGB in [0, 1] of shape (b, 3, H, W). They are not resized unless stated otherwise.
Distances are differentiable, so they can serve as losses.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from dreampose.metrics.backbones import EfficientNetLite0, ResNet50, Slices, normalise


def vgg_distance(
    network: Slices, pred: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """Mean absolute difference of VGG-19 features, averaged over relu1_1 to relu5_1.

    Range: 0 to infinity. Resolution: original, at least 16x16. Colours: RGB in [0, 1], normalised
    by ImageNet's mean and deviation. Backbone: vgg19-dcbb9e9d.pth (SHA-256 begins with dcbb9e9d).
    Source: the perceptual distance of Johnson et al. 2016 (arXiv 1603.08155) in the form of
    Siarohin et al. 2019 (arXiv 2003.00196, eq. 4), at one resolution. The paper does not state the
    layers of its column VGG, so its values may have another scale.
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
    """LPIPS 0.1 on AlexNet: weighted squared differences of unit feature vectors.

    Range: 0 to infinity, below 1 in practice. Resolution: original, at least 32x32. Colours: RGB in
    [-1, 1], normalised by LPIPS' mean and deviation. Backbone: alexnet-owt-7be5be79.pth (SHA-256
    begins with 7be5be79), heads alex.pth 0.1 (df73285e). Source: Zhang et al. 2018 (arXiv
    1801.03924); equal to the package `lpips`. The paper does not state its backbone; AlexNet is
    LPIPS' default. torchmetrics' LPIPS needs torchvision and downloads the backbone.
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
    """LPIPS without learned weights, averaged over the five stages of EfficientNet-Lite0.

    Range: 0 to 4. Resolution: original, at least 32x32. Colours: RGB in [0, 1], (level - 127) /
    128. Backbone: efficientnet-lite0-57934424.pth (SHA-256 begins with 57934424).
    Source: this project, after Zhang et al. 2018, eq. 1 with equal weights. Values are not
    comparable with LPIPS of any backbone.
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
    """Embedding for person re-identification; images are resized to 288x144."""
    fitted = functional.interpolate(
        images, size=(288, 144), mode="bicubic", antialias=True, align_corners=False
    )
    return network(normalise(fitted.clamp(0, 1)))


def average_identity_distance(
    network: ResNet50, pred: Float[Tensor, "b 3 H W"], truth: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, " b"]:
    """Average Euclidean distance (AED) of person re-identification embeddings.

    Despite its name it is the mean absolute difference of the 2048 features, as in the published
    code (`cmp.py`).

    Range: 0 to infinity. Resolution: 288x144, bicubic, aspect ratio not kept. Colours: RGB in
    [0, 1], normalised by ImageNet's mean and deviation. Backbone: reid_model.pth, ResNet-50 on
    Market-1501 (no published hash; the report prints that of the file). Source: Siarohin's
    pose-evaluation, as used by MRAA (arXiv 2104.11280). DreamPose states neither its network nor
    whether features are normalised.
    """
    distance = identity_embedding(network, pred) - identity_embedding(network, truth)
    return distance.abs().mean(dim=1)


def _squared_difference(
    a: Float[Tensor, "b c h w"], b: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Squared difference of the unit feature vectors of every cell."""
    return (unit_length(a) - unit_length(b)).square()


def unit_length(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Scales the feature vector of every cell to length 1; zero vectors stay zero."""
    # The summand keeps the gradient finite where a cell is all zeros.
    length = (x.square().sum(dim=1, keepdim=True) + 1e-20).sqrt()
    return x / (length + 1e-10)


def _lpips_scale(images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
    shift = torch.tensor([-0.030, -0.088, -0.188]).to(images)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450]).to(images)[:, None, None]
    return (images * 2 - 1 - shift) / scale


@torch.no_grad()
def pairwise_lpips_lite(
    network: EfficientNetLite0, preds: Float[Tensor, "n 3 H W"], truths: Float[Tensor, "m 3 H W"]
) -> Float[Tensor, "n m"]:
    """lpips-lite of every pair of a rendered and a true frame.

    Args:
        network: EfficientNet-Lite0; it runs once per frame.
        preds: rendered frames, one per person, all in the same pose.
        truths: true frames, in the same pose.
    """
    stages = list(zip(network.stages(preds), network.stages(truths), strict=True))
    total = torch.zeros(len(preds), len(truths)).to(preds)
    for first, second in stages:
        _, _, height, width = first.shape
        a, b = unit_length(first).flatten(1), unit_length(second).flatten(1)
        # The equivalent 2 - 2 cos would lose precision for small distances.
        squared = torch.stack([(row - b).square().sum(dim=1) for row in a])
        total += squared / (height * width * len(stages))
    return total


def identity_kept(matrix: Float[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """Whether the rendered frame of each person is nearest to the true frame of the same person.

    Args:
        matrix: distances; row i is the rendered frame of person i, column j the true frame of
            person j. A tie counts as not kept.
    """
    own = matrix.diagonal()
    others = matrix.clone().fill_diagonal_(float("inf"))
    return own < others.min(dim=1).values
