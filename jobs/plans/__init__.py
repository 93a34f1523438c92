"""What each job will take, for `--dry-run`: what is asked for, times what a piece costs.

Knows flags and data; what the model's modules cost is `dreampose.planning`'s. Starts no Ray.
"""

from jobs.plans.data import catwalk, preprocess
from jobs.plans.rendering import evaluate, render
from jobs.plans.training import finetune, train

__all__ = ["catwalk", "evaluate", "finetune", "preprocess", "render", "train"]
