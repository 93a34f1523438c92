"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreampose import recipes
from dreampose.config import PRESETS, Recipe, Savings, replace
from dreampose.errors import InputError
from dreampose.io.provenance import Signer

ESTIMATOR_HELP = (
    "pose estimator: blazepose (any video), densepose:FILE (any video, with an exported DensePose "
    "model, docs/poses.md), or catwalk (ground truth of a synthetic clip)"
)

if TYPE_CHECKING:
    from dreampose.pipeline import DreamPosePipeline

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of torch dtypes by `--precision` of rendering."""


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`; the default is the embedded model."""
    parser.add_argument(
        "--model", default="models/catwalk", help="model folder (default: %(default)s)"
    )


def add_preset(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Adds `--preset`."""
    parser.add_argument(
        "--preset",
        default=default,
        choices=sorted(PRESETS),
        help="sampler: exact is the paper's (PNDM, 100 steps); balanced (20 steps) and fast "
        "(8 steps) use a higher-order solver; preview samples nothing and shows the warped photo "
        "(default: %(default)s)",
    )


def add_chunk_size(parser: argparse.ArgumentParser) -> None:
    """Adds `--chunk-size`."""
    parser.add_argument(
        "--chunk-size",
        type=positive,
        default=8,
        help="frames per batch: more need more memory and do not change the video "
        "(default: %(default)s)",
    )


def add_align(parser: argparse.ArgumentParser) -> None:
    """Adds `--no-align`, stored as `align`."""
    parser.add_argument(
        "--no-align",
        dest="align",
        action="store_false",
        help="do not fit the motion's position and scale to the body in the photo",
    )


def add_estimator(parser: argparse.ArgumentParser, *, default: str = "blazepose") -> None:
    """Adds `--estimator`."""
    parser.add_argument(
        "--estimator",
        type=estimator,
        default=default,
        metavar="NAME",
        help=f"{ESTIMATOR_HELP} (default: %(default)s)",
    )


def add_size(parser: argparse.ArgumentParser, *, what: str) -> None:
    """Adds `--size`.

    Args:
        parser: parser to extend.
        what: noun for the help text, such as 'the video'.
    """
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help=f"height and width of {what} in pixels, multiples of 8 (default: the model's)",
    )


def sizes(texts: Sequence[str], recipe: Recipe) -> Recipe:
    """Adds frame sizes to a recipe.

    Args:
        texts: sizes such as '512x512', or 'auto' for aspect buckets.
        recipe: recipe to extend.

    Raises:
        InputError: a size cannot be parsed or is not a multiple of 8.
    """
    found: list[tuple[int, int]] = []
    for text in texts:
        try:
            found += recipes.aspect_sizes(recipe) if text == "auto" else [size(text)]
        except argparse.ArgumentTypeError as error:
            raise InputError(f"sizes {error}") from error
    own = recipe.frame_sizes[0]
    return replace(recipe, sizes=tuple(each for each in dict.fromkeys(found) if each != own))


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Adds `--sizes`, the aspect buckets of training data."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="HxW",
        help="frame sizes in addition to the recipe's; each clip uses the one of the nearest "
        "aspect ratio. 'auto' adds buckets from 2:1 to 1:2 of about the recipe's area",
    )


def size(text: str) -> tuple[int, int]:
    """Parses height and width, such as '640x512'; for `type=`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be HEIGHTxWIDTH such as 640x512, got {text!r}")
    return int(height), int(width)


def estimator(text: str) -> str:
    """Parses an estimator's name and makes the path of its model absolute; for `type=`."""
    name, separator, file = text.partition(":")
    return f"{name}:{Path(file).expanduser().absolute()}" if separator and file else text


def add_certificate(parser: argparse.ArgumentParser) -> None:
    """Adds `--certificate` and `--certificate-key`."""
    parser.add_argument(
        "--certificate",
        metavar="PEM",
        help="sign the video with C2PA: certificate chain of the signer",
    )
    parser.add_argument("--certificate-key", metavar="PEM", help="private key of the certificate")


def signer(args: argparse.Namespace) -> Signer | None:
    """Signer of `--certificate`; None without it.

    Raises:
        InputError: only one of the two arguments is given, or see `Signer`.
    """
    if args.certificate is None and args.certificate_key is None:
        return None
    if args.certificate is None or args.certificate_key is None:
        raise InputError("certificate and certificate_key must be given together, got one of them")
    return Signer(args.certificate, args.certificate_key)


def add_savings(parser: argparse.ArgumentParser) -> None:
    """Adds the memory options of training, which `savings` reads."""
    parser.add_argument(
        "--precision",
        default="auto",
        help="precision of computation: fp32, bf16 (weights stay float32), or auto, which is bf16 "
        "on GPUs that support it (default: %(default)s)",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="recompute activations instead of storing them: less memory, a third more computation",
    )
    parser.add_argument(
        "--optimizer",
        default="adamw",
        help="adamw, or adamw8bit (extra 'low-memory'), whose moments need a quarter of the memory "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ema-on-cpu",
        action="store_true",
        help="keep the exponential moving average of the weights in CPU memory",
    )


def add_render_savings(parser: argparse.ArgumentParser) -> None:
    """Adds the memory options of rendering, which `place_on_device` reads."""
    parser.add_argument(
        "--precision",
        choices=sorted(DTYPES),
        default="fp32",
        help="precision of weights and computation: fp16 and bf16 need half the memory "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="on a GPU, keep weights in CPU memory and move one model (model) or one layer "
        "(sequential, much slower) at a time to the GPU (default: %(default)s)",
    )
    parser.add_argument("--vae-slicing", action="store_true", help="decode one frame at a time")
    parser.add_argument(
        "--vae-tiling",
        action="store_true",
        help="decode overlapping tiles of 256 pixels; frames change slightly",
    )


def place_on_device(pipe: "DreamPosePipeline", args: argparse.Namespace) -> None:
    """Moves a pipeline to the GPU, or the CPU if there is none, with `add_render_savings`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.split_decoding(slicing=args.vae_slicing, tiling=args.vae_tiling)
    # Offloading only helps with a GPU.
    pipe.offload(args.offload if device == "cuda" else "none", device)


def savings(args: argparse.Namespace) -> Savings:
    """Memory options of `add_savings`.

    Raises:
        InputError: the optimizer or precision is unknown, or its package is missing.
    """
    from dreampose.training import memory

    chosen = Savings(
        gradient_checkpointing=args.gradient_checkpointing,
        optimizer=args.optimizer,
        average_on_cpu=args.ema_on_cpu,
    )
    memory.check(chosen)
    memory.mixed_precision(args.precision)
    return chosen


def positive(text: str) -> int:
    """Parses an integer of at least 1; for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)
