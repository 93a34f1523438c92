"""Scores of a rendered video against the true one. Knows nothing of models that render, nor of Ray.

Frames come as 8-bit RGB, `(t, H, W, 3)`; `METRICS` names every score, what it needs and how it is
to be read. Scores on published backbones and their offline twins on EfficientNet-Lite0
(`lpips-lite`, `fid-lite`, `fvd-lite`) have different names because their figures do not compare.
"""

from dreampose.metrics.bootstrap import (
    Interval,
    bootstrap_grid,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
)
from dreampose.metrics.clip_scores import Networks, curve, distance, features, pair_scores
from dreampose.metrics.frechet import frechet_distance
from dreampose.metrics.registry import DEFAULT, GROUPS, METRICS, Metric, choose

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
