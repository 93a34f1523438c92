"""Flags that several commands share, declared once. Knows nothing of what the commands do."""

import argparse
from pathlib import Path

from dreampose.config import PRESETS

ESTIMATOR_HELP = (
    "reads poses from videos: blazepose reads any; densepose:FILE too, with an exported DensePose "
    "model (docs/poses.md); catwalk takes the exact ones beside a catwalk clip"
)


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model`: the embedded one by default."""
    parser.add_argument(
        "--model", default="models/catwalk", help="model folder (default: %(default)s)"
    )


def add_preset(parser: argparse.ArgumentParser, *, default: str) -> None:
    """`--preset`: how videos are sampled."""
    parser.add_argument(
        "--preset",
        default=default,
        choices=sorted(PRESETS),
        help="how to sample: exact is the paper's PNDM with 100 steps, balanced takes 20 and fast "
        "8 of a higher-order solver (default: %(default)s)",
    )


def add_chunk_size(parser: argparse.ArgumentParser) -> None:
    """`--chunk-size`: frames in a batch."""
    parser.add_argument(
        "--chunk-size",
        type=positive,
        default=8,
        help="frames denoised together: more need more memory; the video stays the same "
        "(default: %(default)s)",
    )


def add_align(parser: argparse.ArgumentParser) -> None:
    """`--no-align`, as `align`."""
    parser.add_argument(
        "--no-align",
        dest="align",
        action="store_false",
        help="keep the motion's own place and size instead of the photo's body",
    )


def add_estimator(parser: argparse.ArgumentParser) -> None:
    """`--estimator`: who reads poses from videos."""
    parser.add_argument(
        "--estimator",
        type=estimator,
        default="blazepose",
        metavar="NAME",
        help=f"{ESTIMATOR_HELP} (default: %(default)s)",
    )


def estimator(text: str) -> str:
    """An estimator's name for `type=`, with the path of its model made absolute."""
    name, separator, file = text.partition(":")
    return f"{name}:{Path(file).expanduser().absolute()}" if separator and file else text


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
