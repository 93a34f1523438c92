"""Converts published checkpoints and a Stable Diffusion base to a model folder.

With --base alone, the model is the paper's initialisation for training.
"""

import argparse
from pathlib import Path

from dreampose import checkpoints, convert, export
from dreampose.models import card, subject
from dreampose.options.loading import silence_libraries
from dreampose.pipeline import DreamPosePipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--base",
        required=True,
        metavar="SD",
        help="Stable Diffusion 1.x: a folder in diffusers' layout, a .safetensors or .ckpt file, "
        "or a hub id such as CompVis/stable-diffusion-v1-4",
    )
    parser.add_argument("--unet", type=Path, metavar="F.pth", help="published unet_epoch_N.pth")
    parser.add_argument("--adapter", type=Path, metavar="F.pth", help="published adapter_N.pth")
    parser.add_argument(
        "--vae",
        type=Path,
        metavar="F.pth",
        help="published vae_N.pth with a finetuned decoder (default: the base's VAE)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="MODEL", help="folder to write")
    parser.add_argument(
        "--image-encoder",
        metavar="CLIP",
        help="folder or hub id of CLIP ViT-B/32 (default: SD/image_encoder, or the hub's)",
    )
    parser.add_argument("--revision", help="commit of a base on the hub (default: the pinned one)")
    parser.add_argument(
        "--base-config",
        type=Path,
        metavar="PATH",
        help="architecture of a base in one file: a folder with unet/config.json and "
        "vae/config.json, or the original YAML (default: the YAML of the same name beside it, or "
        "Stable Diffusion 1.x)",
    )
    parser.add_argument("--height", type=int, help="frame height (default: that of the weights)")
    parser.add_argument("--width", type=int, help="frame width (default: that of the weights)")
    for name, what in (("image", "black and white"), ("pose", "0 and 1 of a pose map")):
        low, high = convert.PUBLISHED[f"{name}_range"]
        parser.add_argument(
            f"--{name}-range",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            help=f"values of {what} in the training of the weights (default: {low:g} {high:g}; "
            "0 1 for weights finetuned with published scripts from 21 April 2023 on)",
        )
    parser.add_argument(
        "--photo",
        type=Path,
        metavar="P",
        help="photo of a whole person on which the denoising loss of both ranges is measured "
        "(default: a rendered person)",
    )
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="do not measure the range, which takes eight calls of the UNet",
    )
    parser.add_argument(
        "--licence", help="licence in the model card (default: that of the base, if known)"
    )


def run(args: argparse.Namespace) -> None:
    """Runs the command. Nothing is written if a checkpoint does not fit.

    Raises:
        InputError: see `dreampose.convert.import_model`; or OUT exists.
    """
    export.check_new(args.out)
    silence_libraries()
    pipe, source = convert.import_model(
        args.base,
        unet=args.unet,
        adapter=args.adapter,
        vae=args.vae,
        image_encoder=args.image_encoder,
        revision=args.revision,
        config=args.base_config,
        height=args.height,
        width=args.width,
        image_range=args.image_range and tuple(args.image_range),
        pose_range=args.pose_range and tuple(args.pose_range),
    )
    files = {"UNet": args.unet, "adapter": args.adapter, "VAE": args.vae}
    origin = [f"made from base: {source}"]
    origin += [
        f"made from {part}: {path.name}, sha256 {card.file_hash(path)}"
        for part, path in files.items()
        if path
    ]
    checkpoints.save(
        pipe,
        args.out,
        text=card.of_model(pipe, origin=origin, licence=args.licence or card.licence_of(args.base)),
    )
    recipe = pipe.recipe
    print(
        f"{args.out}: {recipe.height}x{recipe.width}, photos {recipe.photo_fit}, image range "
        f"{recipe.image_range[0]:g} to {recipe.image_range[1]:g}, pose range "
        f"{recipe.pose_range[0]:g} to {recipe.pose_range[1]:g}, "
        f"fingerprint {subject.fingerprint(pipe)}"
    )
    if args.unet is not None and not args.no_measure:
        print(_measured(pipe, args.photo))


def _measured(pipe: DreamPosePipeline, photo: Path | None) -> str:
    """One line on which range fits the weights better."""
    losses = convert.compare_ranges(pipe, *convert.measured_photo(pipe.recipe, photo))
    shown = ", ".join(f"{loss:.4f} in [{low:g}, {high:g}]" for (low, high), loss in losses.items())
    low, high = min(losses, key=lambda limits: losses[limits])
    verdict = f"[{low:g}, {high:g}] fits these weights better"
    if (low, high) != pipe.recipe.image_range:
        verdict += f": import them again with --image-range {low:g} {high:g} --pose-range "
        verdict += f"{low:g} {high:g} unless you know better"
    source = "the photo" if photo else "a rendered person"
    return f"denoising loss on {source}: {shown}; {verdict}"
