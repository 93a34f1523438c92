"""Renders the synthetic fashion data set.

Each clip is an MP4 of a clothed person in motion, with exact ground truth (NPZ) and the
parameters of the person (JSON). An interrupted run is continued by the same command.
"""

import argparse

from dreampose.options.catwalk import add_arguments, clip_tasks
from dreampose.options.progress import ProgressBar
from dreampose.synthetic.generate import generate

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Renders the data set with a progress bar.

    Raises:
        InputError: an argument is out of range.
    """
    clips = clip_tasks(arguments)
    progress = generate(arguments.out, clips, workers=arguments.workers)
    with ProgressBar(total=len(clips), unit="clip") as bar:
        for done, _ in progress:
            bar.update(done - bar.n)
    return 0
