"""Runs a score on a clip, networks loaded once. Knows nothing of files or Ray."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreampose.errors import InputError
from dreampose.metrics import backbones, efficientnet, frechet, pretrained
from dreampose.metrics.registry import Metric


class Networks:
    """Networks of scores, each loaded when it is first asked for.

    Args:
        provided: folder or hub id with the weights that users provide.
        device: where networks run.
    """

    def __init__(self, provided: str | None = None, *, device: str = "cpu") -> None:
        self.provided = provided
        self.device = torch.device(device)
        self._loaded: dict[str, Any] = {}

    def check(self, metrics: Sequence[Metric]) -> dict[str, str]:
        """SHA-256 of every weights file that these scores need, by its name.

        Raises:
            InputError: some are missing or are not the published ones; it names them all.
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
        """The network of a score, ready on the device."""
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
    """A score's values along a clip."""
    if metric.pixel_curve is not None:
        return metric.pixel_curve(pred, truth)
    assert metric.network_curve is not None
    network = found.get(metric)
    values = [
        metric.network_curve(
            network,
            images(pred[start : start + metric.chunk]).to(found.device),
            images(truth[start : start + metric.chunk]).to(found.device),
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
    """Means of scores over frames that are pairs of neighbours, taken here and there of a clip.

    Scores that compare a frame with the next are of the pairs alone.

    Args:
        chosen: scores that are curves.
        pred: frames 0 and 1 are neighbours, 2 and 3, and so on.
        truth: the true ones.
        found: networks.
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
    """What a score's network makes of a clip; `distance` takes what it needs of it."""
    assert metric.features is not None
    network, step = found.get(metric), metric.chunk or len(frames)
    parts = [
        metric.features(network, images(frames[start : start + step]).to(found.device))
        for start in range(0, len(frames), step)
    ]
    return torch.cat(parts).cpu().numpy().astype(np.float32)


def distance(metric: Metric, pred: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The Fréchet distance of a set of clips to the true ones; NaN for fewer than two rows."""
    select = metric.rows or (lambda rows: rows)
    first, second = (np.concatenate([select(clip) for clip in clips]) for clips in (pred, truth))
    if min(len(first), len(second)) < 2:
        return float("nan")
    return frechet.frechet_distance(first, second)


def images(frames: UInt8[np.ndarray, "t H W 3"]) -> Float[Tensor, "t 3 H W"]:
    """8-bit frames as RGB floats in [0, 1], channels first."""
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float().div(255)


def _load(network: Any, path: Any, *, prefix: str = "") -> Any:
    backbones.load(network, pretrained.read_state(path), prefix=prefix)
    return network


_LOADERS: dict[str, Callable[[Any], Any]] = {
    pretrained.LITE0.file: lambda path: efficientnet.build(pretrained.read_state(path)),
    pretrained.ALEXNET.file: lambda path: _load(backbones.alexnet(), path),
    pretrained.VGG19.file: lambda path: _load(backbones.vgg19(), path),
    pretrained.REID.file: lambda path: _load(
        backbones.ResNet50(dimensions=2), path, prefix="model."
    ),
    pretrained.RESNET3D.file: lambda path: _load(backbones.ResNet50(dimensions=3), path),
    pretrained.INCEPTION.file: pretrained.read_script,
    pretrained.I3D.file: pretrained.read_script,
}
