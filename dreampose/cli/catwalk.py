"""Renders the synthetic fashion data set. Knows nothing of how frames are made.

Clothed people in motion: each clip is an MP4 with exact ground truth (NPZ) and the
person's parameters (JSON). Run it again to finish what is missing.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreampose.errors import InputError
from dreampose.synthetic.gait import MOTIONS
from dreampose.synthetic.generate import DEFAULT_MOTIONS, ClipTask, generate, tasks
from dreampose.synthetic.identity import SPLITS


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    out: Callable[[str], Any] = Path,
    workers: int | None = 1,
) -> None:
    """Adds the data set's flags.

    Args:
        parser: to add them to.
        out: type of `--out`; a job that writes to any storage takes `str`.
        workers: default of `--workers`; None means as many as fit.
    """
    parser.add_argument("--out", type=out, required=True, help="folder to write to")
    parser.add_argument("--identities", type=int, required=True, help="people, a clip per motion")
    parser.add_argument(
        "--motions",
        nargs="+",
        choices=MOTIONS,
        default=list(DEFAULT_MOTIONS),
        help="across is a brisk walk that veers to the side (default: walk turn)",
    )
    parser.add_argument("--frames", type=int, default=32, help="frames per clip (default: 32)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people")
    parser.add_argument(
        "--size", default="320x256", metavar="HxW", help="height x width (default: 320x256)"
    )
    parser.add_argument(
        "--workers", type=int, default=workers, help=f"processes (default: {workers or 'all'})"
    )


def parse_size(text: str) -> tuple[int, int]:
    """Height and width from 'HxW'.

    Raises:
        InputError: the text does not have that form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise InputError(f"size must be HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def plan(arguments: argparse.Namespace) -> list[ClipTask]:
    """The clips that the flags ask for.

    Raises:
        InputError: a flag is outside its range.
    """
    height, width = parse_size(arguments.size)
    return tasks(
        identities=arguments.identities,
        frames=arguments.frames,
        split=arguments.split,
        seed=arguments.seed,
        height=height,
        width=width,
        motions=arguments.motions,
    )


def run(arguments: argparse.Namespace) -> int:
    """Renders what the flags ask for and shows a progress bar.

    Raises:
        InputError: a flag is outside its range.
    """
    progress = generate(arguments.out, plan(arguments), workers=arguments.workers)
    with tqdm(unit="clip", file=sys.stderr) as bar:
        for done, total in progress:
            bar.total = total
            bar.update(done - bar.n)
    return 0
