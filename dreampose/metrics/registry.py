"""Every score by name: what it needs and how it is read. Knows nothing of files, sets or Ray.

A score is either a curve, one value per frame (or step) of a clip against its truth, whose mean is
the clip's; or a set of features of one clip, of which the distance between two sets is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dreampose.errors import InputError
from dreampose.metrics import frechet, perceptual, pixels, pretrained
from dreampose.metrics.pretrained import Backbone

GROUPS = {
    "pixels": "Pixels",
    "published": "Published backbones",
    "lite": "EfficientNet-Lite0 (these do not compare with published LPIPS, FID or FVD)",
}
"""Kinds of scores, which are never mixed in a table; and their headings."""

_CHUNK = 8
"""Frames that go through a network at once."""

PixelCurve = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Frames of a clip and of its truth to one value per frame."""
NetworkCurve = Callable[[Any, Tensor, Tensor], Tensor]
"""A network, images and true images to one value per image."""
Features = Callable[[Any, Tensor], Tensor]
"""A network and the images of a clip to rows of features."""
Rows = Callable[[np.ndarray], np.ndarray]
"""Features of a clip to the rows of which a Fréchet distance is taken."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score. Exactly one of the three functions is given.

    Attributes:
        name: on the command line and in files.
        title: in tables.
        group: key of `GROUPS`.
        pixel_curve: computes it from pixels alone.
        network_curve: computes it frame by frame through the network.
        features: what the network makes of a clip; the score is the Fréchet distance of sets.
        rows: what of the features the distance is taken of; `None` for all of them.
        backbones: weights that it needs, the network's first.
        higher_is_better: the sense of its scale.
        digits: behind the point, in tables.
        min_frames: that a clip must have.
        min_size: that its height and width must have.
        chunk: frames that go through the network at once; 0 for all, where they belong together.
    """

    name: str
    title: str
    group: str
    pixel_curve: PixelCurve | None = None
    network_curve: NetworkCurve | None = None
    features: Features | None = None
    rows: Rows | None = None
    backbones: tuple[Backbone, ...] = ()
    higher_is_better: bool = False
    digits: int = 4
    min_frames: int = 1
    min_size: int = 1
    chunk: int = _CHUNK

    @property
    def about(self) -> str:
        """The docstring: range, resolution, colours, backbone, source."""
        function = self.pixel_curve or self.network_curve or self.rows or self.features
        return (function.__doc__ or "").strip() if function else ""

    @property
    def is_set(self) -> bool:
        """Whether the score is of a whole set of clips rather than of each."""
        return self.features is not None


def choose(names: str) -> list[Metric]:
    """Scores by their names, separated by commas; a group's name stands for all of its scores.

    Raises:
        InputError: a name is not known.
    """
    chosen: dict[str, Metric] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        group = [metric for metric in METRICS.values() if name in (metric.group, "all")]
        if not group and name not in METRICS:
            raise InputError(
                f"metrics must be among {', '.join([*METRICS, *GROUPS, 'all'])}, got {name!r}"
            )
        chosen |= {metric.name: metric for metric in group or [METRICS[name]]}
    if not chosen:
        raise InputError(f"metrics must name at least one score, got {names!r}")
    return [metric for metric in METRICS.values() if metric.name in chosen]


def _lpips(network: Any, pred: Tensor, truth: Tensor) -> Tensor:
    body, heads = network
    return perceptual.lpips(body, heads, pred, truth)


_lpips.__doc__ = perceptual.lpips.__doc__


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(name="l1", title="L1", group="pixels", pixel_curve=pixels.l1),
        Metric(
            name="psnr",
            title="PSNR",
            group="pixels",
            pixel_curve=pixels.psnr,
            higher_is_better=True,
            digits=2,
        ),
        Metric(
            name="ssim",
            title="SSIM",
            group="pixels",
            pixel_curve=pixels.ssim,
            higher_is_better=True,
            min_size=11,
        ),
        Metric(
            name="tde",
            title="temporal difference error",
            group="pixels",
            pixel_curve=pixels.temporal_difference_error,
            min_frames=2,
        ),
        Metric(
            name="static",
            title="static-region variance",
            group="pixels",
            pixel_curve=pixels.static_variance,
            digits=2,
            min_frames=2,
        ),
        Metric(
            name="vgg",
            title="VGG",
            group="published",
            network_curve=perceptual.vgg_distance,
            backbones=(pretrained.VGG19,),
            min_size=16,
        ),
        Metric(
            name="lpips",
            title="LPIPS",
            group="published",
            network_curve=_lpips,
            backbones=(pretrained.ALEXNET, pretrained.LPIPS_HEADS),
            min_size=32,
        ),
        Metric(
            name="fid",
            title="FID",
            group="published",
            features=frechet.fid_features,
            backbones=(pretrained.INCEPTION,),
            digits=2,
        ),
        Metric(
            name="fid-vid",
            title="FID-VID",
            group="published",
            features=frechet.fid_video_features,
            backbones=(pretrained.RESNET3D,),
            digits=2,
            chunk=0,
        ),
        Metric(
            name="fvd-16f",
            title="FVD-16f",
            group="published",
            features=frechet.fvd_features,
            backbones=(pretrained.I3D,),
            digits=2,
            min_frames=frechet.WINDOW,
            chunk=0,
        ),
        Metric(
            name="aed",
            title="AED",
            group="published",
            network_curve=perceptual.average_identity_distance,
            backbones=(pretrained.REID,),
        ),
        Metric(
            name="lpips-lite",
            title="lpips-lite",
            group="lite",
            network_curve=perceptual.lpips_lite,
            backbones=(pretrained.LITE0,),
            min_size=32,
        ),
        Metric(
            name="fid-lite",
            title="fid-lite",
            group="lite",
            features=frechet.lite_features,
            rows=frechet.fid_lite_rows,
            backbones=(pretrained.LITE0,),
            digits=2,
        ),
        Metric(
            name="fvd-lite",
            title="fvd-lite",
            group="lite",
            features=frechet.lite_features,
            rows=frechet.fvd_lite_rows,
            backbones=(pretrained.LITE0,),
            digits=3,
            min_frames=frechet.WINDOW,
        ),
    )
}
"""Every score, in the order of tables."""

DEFAULT = "pixels,lite"
"""What needs no weights but those of a package."""
