"""Cached scores of pairs of clips.

Results are files named after everything they depend on: code, weights and the clips' bytes.
An existing file is never recomputed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from dreampose import metrics
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.files import new_file
from dreampose.metrics import METRICS, Metric, Networks
from dreampose.options import arguments
from jobs.evaluation import clips
from jobs.evaluation.clips import Pair

CURVE, PRED, TRUTH = "curve", "pred", "truth"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One measurement on a pair of clips.

    metric: its name. side: both clips (`curve`) or the one whose features are taken. file: where
    the result lies.
    """

    metric: str
    side: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Work:
    """A pair of clips and its measurements."""

    pair: Pair
    items: tuple[Item, ...]

    def file(self, metric: Metric, side: str) -> str:
        """Name of the file of a result."""
        wanted = _feature_name(metric) if metric.is_set else metric.name
        return next(
            item.file
            for item in self.items
            if item.side == side and wanted in (item.metric, _feature_name(METRICS[item.metric]))
        )

    def missing(self, folder: Path) -> tuple[Item, ...]:
        """Measurements without a result."""
        return tuple(item for item in self.items if not (folder / item.file).is_file())


def plan(pairs: Sequence[Pair], chosen: Sequence[Metric], weights: Mapping[str, str]) -> list[Work]:
    """Measurements of each pair and the files of their results.

    Args:
        pairs: clips.
        chosen: scores.
        weights: SHA-256 of the weights files, by name.
    """
    prints = {path: clips.fingerprint(path) for pair in pairs for path in (pair.pred, pair.truth)}
    work: list[Work] = []
    for pair in pairs:
        items: dict[str, Item] = {}
        fitted = [_size_text(pair)] if pair.fitted else []
        for metric in chosen:
            used = [weights[backbone.file] for backbone in metric.backbones]
            pred, truth = prints[pair.pred], prints[pair.truth]
            if metric.is_set:
                name = _feature_name(metric)
                sides = {
                    PRED: (name, *used, pred, *fitted),
                    TRUTH: (name, *used, truth, *fitted),
                }
            else:
                sides = {CURVE: (metric.name, *used, pred, truth, *fitted)}
            for side, parts in sides.items():
                item = Item(metric=metric.name, side=side, file=f"{_key(*parts)}.npy")
                items.setdefault(f"{side} {item.file}", item)
        work.append(Work(pair=pair, items=tuple(items.values())))
    return work


def todo(work: Sequence[Work], folder: Path) -> list[dict[str, str]]:
    """Rows for Ray Data: missing measurements, without duplicates for shared true clips."""
    rows: list[dict[str, str]] = []
    planned: set[str] = set()
    for one in work:
        missing = [item for item in one.missing(folder) if item.file not in planned]
        planned |= {item.file for item in missing}
        if missing:
            rows.append(
                {
                    "method": one.pair.method,
                    "clip": one.pair.clip,
                    "pred": str(one.pair.pred),
                    "truth": str(one.pair.truth),
                    "size": _size_text(one.pair),
                    "items": json.dumps([[i.metric, i.side, i.file] for i in missing]),
                }
            )
    return rows


class Scorer:
    """Computes the missing measurements of a row; loads its networks once."""

    def __init__(self, folder: str, weights: str | None, num_threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self.folder = Path(folder)
        self.networks = Networks(weights, device=device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Maps rows of `todo` to clips with their errors, empty without an error."""
        columns = zip(*(batch[name] for name in batch), strict=True)
        rows = [{k: str(v) for k, v in zip(batch, row, strict=True)} for row in columns]
        errors: list[str] = []
        for row in rows:
            items = [Item(metric=m, side=s, file=f) for m, s, f in json.loads(row["items"])]
            try:
                measure(
                    Path(row["pred"]),
                    Path(row["truth"]),
                    items,
                    self.folder,
                    self.networks,
                    size=arguments.size(row["size"]) if row["size"] else None,
                )
                errors.append("")
            except InputError as error:
                errors.append(str(error))
        return {"clip": [f"{row['method']}/{row['clip']}" for row in rows], "error": errors}


def measure(
    pred: Path,
    truth: Path,
    items: Sequence[Item],
    folder: Path,
    networks: Networks,
    *,
    size: tuple[int, int] | None,
) -> None:
    """Computes measurements of two clips; each result is written atomically.

    Args:
        pred: clip of a method, a file or a folder of PNGs.
        truth: true clip.
        items: measurements.
        folder: folder of the results.
        networks: networks of the scores.
        size: height and width to which both are fitted; `None` keeps them.

    Raises:
        InputError: a clip cannot be decoded, or differs from its header.
    """
    first, second = clips.read(pred, size)[0], clips.read(truth, size)[0]
    if first.shape != second.shape:
        raise InputError(
            f"pred must decode to the truth's shape {second.shape}, got {first.shape} "
            f"in {str(pred)!r}"
        )
    for item in items:
        metric = METRICS[item.metric]
        if item.side == CURVE:
            values = metrics.curve(metric, first, second, networks)
        else:
            values = metrics.features(metric, first if item.side == PRED else second, networks)
        with new_file(folder / item.file) as part, part.open("wb") as file:
            np.save(file, values)


@cache
def code_fingerprint() -> str:
    """Hash of the code of the scores and of the versions of their libraries."""
    digest = hashlib.sha256()
    sources = sorted(Path(metrics.__file__).parent.glob("*.py"))
    for file in [*sources, Path(video.__file__), Path(clips.__file__)]:
        digest.update(file.read_bytes())
    for package in ("torch", "scikit-image", "numpy", "av"):
        digest.update(f"{package} {version(package)}\n".encode())
    return digest.hexdigest()


def _size_text(pair: Pair) -> str:
    return f"{pair.height}x{pair.width}" if pair.fitted else ""


def _feature_name(metric: Metric) -> str:
    return metric.features.__name__ if metric.features is not None else metric.name


def _key(*parts: str) -> str:
    text = "\n".join([code_fingerprint(), *parts])
    return f"{parts[0].replace('_', '-')}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"
