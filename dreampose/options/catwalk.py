"""Arguments of the synthetic data set, for command and job."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreampose.errors import InputError
from dreampose.synthetic.gait import MOTIONS
from dreampose.synthetic.generate import DEFAULT_MOTIONS, ClipTask, tasks
from dreampose.synthetic.identity import SPLITS


def add_arguments(
    parser: argparse.ArgumentParser,
    *,
    out: Callable[[str], Any] = Path,
    workers: int | None = 1,
) -> None:
    """Adds the command's arguments.

    Args:
        parser: parser to extend.
        out: type of `--out`; `str` for a job that writes to any storage.
        workers: default of `--workers`; None uses all processors.
    """
    parser.add_argument("--out", type=out, required=True, help="folder to write")
    parser.add_argument(
        "--identities", type=int, required=True, help="number of people, each with all motions"
    )
    parser.add_argument(
        "--motions",
        nargs="+",
        choices=MOTIONS,
        default=list(DEFAULT_MOTIONS),
        help="motions of each person; across is a brisk walk to the side (default: walk turn)",
    )
    parser.add_argument("--frames", type=int, default=32, help="frames per clip (default: 32)")
    parser.add_argument(
        "--split", choices=SPLITS, default="train", help="split of the people (default: train)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the people (default: 0)")
    parser.add_argument(
        "--size", default="320x256", metavar="HxW", help="height x width (default: 320x256)"
    )
    parser.add_argument(
        "--workers", type=int, default=workers, help=f"processes (default: {workers or 'all'})"
    )


def parse_size(text: str) -> tuple[int, int]:
    """Parses height and width from 'HxW'.

    Raises:
        InputError: the text has another form.
    """
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise InputError(f"size must be HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def clip_tasks(arguments: argparse.Namespace) -> list[ClipTask]:
    """Clips to render for the given arguments.

    Raises:
        InputError: an argument is out of range.
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
