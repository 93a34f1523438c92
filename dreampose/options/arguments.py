"""Flags that several commands share, declared once. Knows nothing of what the commands do."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreampose import recipes
from dreampose.config import PRESETS, Recipe, Savings, replace
from dreampose.errors import InputError
from dreampose.io.provenance import Signer

ESTIMATOR_HELP = (
    "reads poses from videos: blazepose reads any; densepose:FILE too, with an exported DensePose "
    "model (docs/poses.md); catwalk takes the exact ones beside a catwalk clip"
)

if TYPE_CHECKING:
    from dreampose.pipeline import DreamPosePipeline

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""torch's names of the precisions in which models are rendered."""


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


def add_estimator(parser: argparse.ArgumentParser, *, default: str = "blazepose") -> None:
    """`--estimator`: who reads poses from videos."""
    parser.add_argument(
        "--estimator",
        type=estimator,
        default=default,
        metavar="NAME",
        help=f"{ESTIMATOR_HELP} (default: %(default)s)",
    )


def add_size(parser: argparse.ArgumentParser, *, what: str) -> None:
    """`--size`: another frame than the model's own."""
    parser.add_argument(
        "--size",
        type=size,
        metavar="HxW",
        help=f"height and width of {what} in pixels, multiples of 8 (default: the model's)",
    )


def sizes(texts: Sequence[str], recipe: Recipe) -> Recipe:
    """The recipe with further frame sizes, such as '512x512', or 'auto'.

    Raises:
        InputError: a size is neither, or no multiple of 8.
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
    """`--sizes`: aspect buckets of training data."""
    parser.add_argument(
        "--sizes",
        nargs="+",
        metavar="HxW",
        help="frame sizes beside the recipe's: each clip is fitted into the one of the nearest "
        "aspect; 'auto' takes buckets from 2:1 to 1:2 of about the recipe's area",
    )


def size(text: str) -> tuple[int, int]:
    """Height and width as 640x512, for `type=`."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"must be height and width as 640x512, got {text!r}")
    return int(height), int(width)


def estimator(text: str) -> str:
    """An estimator's name for `type=`, with the path of its model made absolute."""
    name, separator, file = text.partition(":")
    return f"{name}:{Path(file).expanduser().absolute()}" if separator and file else text


def add_certificate(parser: argparse.ArgumentParser) -> None:
    """`--certificate` and `--certificate-key`: who signs the videos."""
    parser.add_argument(
        "--certificate",
        metavar="PEM",
        help="sign with C2PA: the signer's certificate and those that lead to its root",
    )
    parser.add_argument("--certificate-key", metavar="PEM", help="the certificate's private key")


def signer(args: argparse.Namespace) -> Signer | None:
    """Who signs, if anybody does.

    Raises:
        InputError: one of the two flags is missing, or as `Signer`.
    """
    if args.certificate is None and args.certificate_key is None:
        return None
    if args.certificate is None or args.certificate_key is None:
        raise InputError("certificate and certificate_key must be given both, got one")
    return Signer(args.certificate, args.certificate_key)


def add_savings(parser: argparse.ArgumentParser) -> None:
    """The flags of a training that takes less memory; `savings` reads them."""
    parser.add_argument(
        "--precision",
        default="auto",
        help="of computing: fp32, bf16 (weights stay float32), or auto: bf16 on GPUs that know it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations again instead of keeping them: less memory, a third more work",
    )
    parser.add_argument(
        "--optimizer",
        default="adamw",
        help="adamw, or adamw8bit (extra 'low-memory'), whose moments take a quarter of the memory "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ema-on-cpu",
        action="store_true",
        help="keep the moving average of weights in the CPU's memory",
    )


def add_render_savings(parser: argparse.ArgumentParser) -> None:
    """The flags of a rendering that takes less memory; `place` follows them."""
    parser.add_argument(
        "--precision",
        choices=sorted(DTYPES),
        default="fp32",
        help="of weights and computing: fp16 and bf16 take half the memory (default: %(default)s)",
    )
    parser.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="on a GPU, keep weights in the CPU's memory and bring one part (model) or one layer "
        "(sequential, many times slower) at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--vae-slicing", action="store_true", help="decode one frame after the other"
    )
    parser.add_argument(
        "--vae-tiling",
        action="store_true",
        help="decode overlapping tiles of 256 pixels; frames change a little",
    )


def place(pipe: "DreamPosePipeline", args: argparse.Namespace) -> None:
    """Puts a pipeline where it computes, a GPU if there is one, as `add_render_savings` says."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.split_decoding(slicing=args.vae_slicing, tiling=args.vae_tiling)
    # Without a GPU there is nothing to save: the weights lie where they compute.
    pipe.offload(args.offload if device == "cuda" else "none", device)


def savings(args: argparse.Namespace) -> Savings:
    """What the flags of `add_savings` say.

    Raises:
        InputError: there is no such optimizer or precision, or a package is missing.
    """
    from dreampose.training import memory as ways

    chosen = Savings(
        gradient_checkpointing=args.gradient_checkpointing,
        optimizer=args.optimizer,
        average_on_cpu=args.ema_on_cpu,
    )
    ways.check(chosen)
    ways.mixed_precision(args.precision)
    return chosen


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
