"""Registry of scores, and their evaluation.

A score is either a curve, with one value per frame of a clip against its truth, averaged over the
clip; or a Fréchet distance between two sets of clips, computed from features of each clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreampose.errors import InputError
from dreampose.metrics import backbones, frechet, perceptual, pixels, pretrained
from dreampose.metrics.pretrained import Backbone

GROUPS = {
    "pixels": "Pixels",
    "published": "Published backbones",
    "lite": "EfficientNet-Lite0 (not comparable with published LPIPS, FID or FVD)",
}
"""Groups of scores, each with a table of its own, and their headings."""

_CHUNK = 8
"""Frames per batch of a network."""

PixelCurve = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps the frames of a clip and of its truth to one value per frame."""
NetworkCurve = Callable[[Any, Tensor, Tensor], Tensor]
"""Maps a network, images and true images to one value per image."""
Features = Callable[[Any, Tensor], Tensor]
"""Maps a network and the images of a clip to rows of features."""
Rows = Callable[[np.ndarray], np.ndarray]
"""Maps the features of a clip to the rows that enter the Fréchet distance."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score. Exactly one of `pixel_curve`, `network_curve` and `features` is given.

    Attributes:
        name: name on the command line and in files.
        title: heading in tables.
        group: key of `GROUPS`.
        pixel_curve: function of pixels.
        network_curve: function of a network, per frame.
        features: features of a clip; the score is the Fréchet distance of two sets.
        rows: selects the features that enter the distance; `None` for all.
        backbones: weight files, that of the network first.
        higher_is_better: whether larger values are better.
        digits: decimals in tables.
        min_frames: minimum number of frames of a clip.
        min_size: minimum height and width.
        chunk: frames per batch of the network; 0 for the whole clip at once.
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
        """Docstring of the score: range, resolution, colours, backbone and source."""
        function = self.pixel_curve or self.network_curve or self.rows or self.features
        return (function.__doc__ or "").strip() if function else ""

    @property
    def is_set(self) -> bool:
        """Whether the score is computed of a whole set of clips."""
        return self.features is not None


def choose(names: str) -> list[Metric]:
    """Parses a comma-separated list of names of scores or groups; 'all' means every score.

    Raises:
        InputError: a name is unknown, or none is given.
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
"""All scores in the order of tables."""

DEFAULT = "pixels,lite"
"""Scores that need no weights from the user."""


class Networks:
    """Networks of the scores, loaded on first use.

    Args:
        provided: folder or hub id with the weights that the user provides.
        device: torch device of the networks.
    """

    def __init__(self, provided: str | None = None, *, device: str = "cpu") -> None:
        self.provided = provided
        self.device = torch.device(device)
        self._loaded: dict[str, Any] = {}

    def check(self, metrics: Sequence[Metric]) -> dict[str, str]:
        """Locates the weight files of the given scores.

        Returns:
            SHA-256 by file name.

        Raises:
            InputError: files are missing or are not the published ones; the message names all.
        """
        needed = {backbone.file: backbone for metric in metrics for backbone in metric.backbones}
        found: dict[str, str] = {}
        faults: list[str] = []
        for file, backbone in needed.items():
            try:
                found[file] = pretrained.fingerprint(pretrained.locate(backbone, self.provided))
            except InputError as error:
                faults.append(str(error))
        if faults:
            raise InputError("; ".join(faults))
        return found

    def get(self, metric: Metric) -> Any:
        """Network of a score; for LPIPS, a pair of the network and its linear heads."""
        key = metric.backbones[0].file
        if key not in self._loaded:
            path = pretrained.locate(metric.backbones[0], self.provided)
            self._loaded[key] = _LOADERS[key](path).to(self.device)
        network = self._loaded[key]
        if metric.backbones[1:]:
            heads = pretrained.read_state(pretrained.locate(metric.backbones[1], self.provided))
            return network, [heads[f"lin{i}.model.1.weight"].to(self.device) for i in range(5)]
        return network


@torch.no_grad()
def curve(
    metric: Metric,
    pred: UInt8[np.ndarray, "t H W 3"],
    truth: UInt8[np.ndarray, "t H W 3"],
    found: Networks,
) -> Float[np.ndarray, " n"]:
    """Values of a score along a clip, one per frame (or per pair of frames)."""
    if metric.pixel_curve is not None:
        return metric.pixel_curve(pred, truth)
    assert metric.network_curve is not None
    network = found.get(metric)
    values = [
        metric.network_curve(
            network,
            to_tensor(pred[start : start + metric.chunk]).to(found.device),
            to_tensor(truth[start : start + metric.chunk]).to(found.device),
        )
        for start in range(0, len(pred), metric.chunk)
    ]
    return torch.cat(values).cpu().numpy().astype(np.float64)


def pair_scores(
    chosen: Sequence[Metric],
    pred: UInt8[np.ndarray, "n H W 3"],
    truth: UInt8[np.ndarray, "n H W 3"],
    found: Networks,
) -> dict[str, float]:
    """Mean scores over pairs of consecutive frames that were sampled from a clip.

    Scores that compare consecutive frames are computed within the pairs.

    Args:
        chosen: scores that are curves.
        pred: rendered frames; frames 2k and 2k + 1 are consecutive in the clip.
        truth: the corresponding true frames.
        found: networks of the scores.
    """
    scores: dict[str, float] = {}
    for metric in chosen:
        step = 2 if metric.min_frames > 1 else len(pred)
        parts = [slice(start, start + step) for start in range(0, len(pred), step)]
        curves = [curve(metric, pred[part], truth[part], found) for part in parts]
        scores[metric.name] = float(np.concatenate(curves).mean())
    return scores


@torch.no_grad()
def features(
    metric: Metric, frames: UInt8[np.ndarray, "t H W 3"], found: Networks
) -> Float[np.ndarray, "n d"]:
    """Features of a clip for a Fréchet distance; `distance` selects the rows it needs."""
    assert metric.features is not None
    network, step = found.get(metric), metric.chunk or len(frames)
    parts = [
        metric.features(network, to_tensor(frames[start : start + step]).to(found.device))
        for start in range(0, len(frames), step)
    ]
    return torch.cat(parts).cpu().numpy().astype(np.float32)


def distance(metric: Metric, pred: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Fréchet distance between the features of two sets of clips; NaN for fewer than two rows."""
    select = metric.rows or (lambda rows: rows)
    first, second = (np.concatenate([select(clip) for clip in clips]) for clips in (pred, truth))
    if min(len(first), len(second)) < 2:
        return float("nan")
    return frechet.frechet_distance(first, second)


def to_tensor(frames: UInt8[np.ndarray, "t H W 3"]) -> Float[Tensor, "t 3 H W"]:
    """Converts 8-bit frames to float RGB in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float().div(255)


def _load(network: Any, path: Any, *, prefix: str = "") -> Any:
    backbones.load(network, pretrained.read_state(path), prefix=prefix)
    return network


_LOADERS: dict[str, Callable[[Any], Any]] = {
    pretrained.LITE0.file: lambda path: backbones.build_lite0(pretrained.read_state(path)),
    pretrained.ALEXNET.file: lambda path: _load(backbones.alexnet(), path),
    pretrained.VGG19.file: lambda path: _load(backbones.vgg19(), path),
    pretrained.REID.file: lambda path: _load(
        backbones.ResNet50(dimensions=2), path, prefix="model."
    ),
    pretrained.RESNET3D.file: lambda path: _load(backbones.ResNet50(dimensions=3), path),
    pretrained.INCEPTION.file: pretrained.read_script,
    pretrained.I3D.file: pretrained.read_script,
}
