"""Renders the synthetic fashion data set.

Each clip is an MP4 of a clothed person in motion, with exact ground truth (NPZ) and the
parameters of the person (JSON). An interrupted run is continued by the same command.
"""

import argparse
import sys

from tqdm import tqdm

from dreampose.options.catwalk import add_arguments, clip_tasks
from dreampose.synthetic.generate import generate

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    """Renders the data set with a progress bar.

    Raises:
        InputError: an argument is out of range.
    """
    progress = generate(arguments.out, clip_tasks(arguments), workers=arguments.workers)
    with tqdm(unit="clip", file=sys.stderr) as bar:
        for done, total in progress:
            bar.total = total
            bar.update(done - bar.n)
    return 0
