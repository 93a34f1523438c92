"""Scores of rendered videos against ground truth.

Frames are 8-bit RGB of shape (t, H, W, 3). `METRICS` lists every score. Scores on published
backbones and their variants on EfficientNet-Lite0 (`lpips-lite`, `fid-lite`, `fvd-lite`) have
different names because their values are not comparable.
"""

from dreampose.metrics.bootstrap import (
    Interval,
    bootstrap_grid,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
)
from dreampose.metrics.frechet import frechet_distance
from dreampose.metrics.registry import (
    DEFAULT,
    GROUPS,
    METRICS,
    Metric,
    Networks,
    choose,
    curve,
    distance,
    features,
    pair_scores,
)

__all__ = [
    "METRICS",
    "GROUPS",
    "DEFAULT",
    "Metric",
    "choose",
    "Networks",
    "curve",
    "features",
    "distance",
    "pair_scores",
    "Interval",
    "bootstrap_mean",
    "bootstrap_grid",
    "bootstrap_ratio",
    "bootstrap_statistic",
    "frechet_distance",
]
