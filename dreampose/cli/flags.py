"""Flags that several commands share, declared once. Knows nothing of what the commands do."""

import argparse

from dreampose.config import PRESETS
from dreampose.errors import InputError
from dreampose.provenance import Signer


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
        default="blazepose",
        help="reads poses from motions that are videos: blazepose, or catwalk for the exact maps "
        "that lie beside a catwalk clip (default: %(default)s)",
    )


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


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
