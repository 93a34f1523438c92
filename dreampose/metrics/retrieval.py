"""Whether a person is still themselves: whose truth a rendered frame is nearest to. Knows no clips.

Images are RGB floats in [0, 1], `(n, 3, H, W)`: one for each person, all in the same pose.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dreampose.metrics.efficientnet import EfficientNetLite0
from dreampose.metrics.perceptual import unit_length


@torch.no_grad()
def distances(
    network: EfficientNetLite0, preds: Float[Tensor, "n 3 H W"], truths: Float[Tensor, "m 3 H W"]
) -> Float[Tensor, "n m"]:
    """lpips-lite of every rendered frame to every true one; the network sees each frame once."""
    stages = list(zip(network.stages(preds), network.stages(truths), strict=True))
    total = torch.zeros(len(preds), len(truths)).to(preds)
    for first, second in stages:
        _, _, height, width = first.shape
        a, b = unit_length(first).flatten(1), unit_length(second).flatten(1)
        # Of unit vectors in each cell; differences, not 2 - 2 cos, which loses small distances.
        squared = torch.stack([(row - b).square().sum(dim=1) for row in a])
        total += squared / (height * width * len(stages))
    return total


def kept(matrix: Float[Tensor, "n n"]) -> Bool[Tensor, " n"]:
    """For each person, whether their own truth is nearer than that of every other person.

    Args:
        matrix: distance of person i's frame to person j's truth. A tie counts as not kept.
    """
    own = matrix.diagonal()
    others = matrix.clone().fill_diagonal_(float("inf"))
    return own < others.min(dim=1).values
