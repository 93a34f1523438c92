"""What each job will take, for `--dry-run`: what is asked for, times what a piece costs.

Knows flags and data; what the model's modules cost is `dreampose.planning`'s. Starts no Ray.
"""

from jobs.plans.data import catwalk, download, preprocess, screen
from jobs.plans.rendering import evaluate, render
from jobs.plans.training import ablate, finetune, train

__all__ = [
    "ablate",
    "catwalk",
    "download",
    "evaluate",
    "finetune",
    "preprocess",
    "render",
    "screen",
    "train",
]
