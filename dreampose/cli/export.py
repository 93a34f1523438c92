"""Exports a model or subject for other programs.

A model becomes a diffusers folder. A subject becomes a folder of its weights; LoRA weights are
also written in kohya's layout. With --model, the subject's weights are merged into a complete
diffusers folder. Nothing is uploaded without --push-to-hub.
"""

import argparse
from pathlib import Path

import torch

from dreampose import export
from dreampose.errors import InputError
from dreampose.io import hub
from dreampose.models import card, model_folder
from dreampose.options.loading import load as load_model

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "source", type=Path, metavar="MODEL|SUBJECT", help="folder of a model or of a subject"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--model", type=Path, help="base model into which a subject's weights are merged"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float16",
        help="dtype of a model's weights (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="training data; the card states its fingerprint",
    )
    parser.add_argument(
        "--licence", help="licence in the card (default: that of the source's card)"
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload the folder to this hub repository"
    )
    parser.add_argument("--private", action="store_true", help="create a private hub repository")


def run(args: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
        InputError: the source is neither a model nor a subject, the arguments contradict each
            other, or OUT exists.
    """
    export.check_new(args.out)
    if args.private and not args.push_to_hub:
        raise InputError("private must be used together with push_to_hub, got private alone")
    if args.push_to_hub:
        hub.check_id(args.push_to_hub)
    is_subject = (args.source / "subject.json").is_file()
    if args.model is not None and not is_subject:
        raise InputError(
            f"model must be used with the folder of a subject, got {str(args.source)!r}, which is "
            "a model"
        )
    if args.data is not None and not [*args.data.rglob("*.parquet")]:
        raise InputError(f"data must be a folder of Parquet files, got {str(args.data)!r}")
    whole = args.source if not is_subject else args.model
    licence = args.licence or model_folder.stated_licence((whole or args.source) / "README.md")
    if whole is None:
        export.export_subject(args.source, args.out, licence=licence)
    else:
        pipe = load_model(whole)
        if is_subject:
            pipe.load_subject(args.source)
        export.export_model(
            pipe,
            args.out,
            dtype=DTYPES[args.dtype],
            origin=model_folder.stated_origin(whole / "README.md"),
            licence=licence,
            data=card.data_hash(args.data) if args.data is not None else None,
        )
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")
    if args.push_to_hub:
        print(hub.push(args.out, args.push_to_hub, private=args.private))
