"""Renders a video (MP4) from photos of a person and a motion.

The motion is a video of any person, or a motion file written by `dreampose pose`.
"""

import argparse
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from warnings import warn

import numpy as np
from jaxtyping import UInt8

from dreampose import data, poses
from dreampose.config import Recipe
from dreampose.errors import InputError, PhotoWarning
from dreampose.io import provenance, video, watermark
from dreampose.options import arguments
from dreampose.options.loading import load as load_model
from dreampose.surface.motion import draw_backing

if TYPE_CHECKING:
    from dreampose.pipeline import DreamPosePipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--photo",
        nargs="+",
        required=True,
        type=Path,
        metavar="P",
        help="one or more photos of the same person; with several, each denoising step uses one",
    )
    parser.add_argument(
        "--motion",
        required=True,
        type=Path,
        metavar="M",
        help="motion: a video, or a .npz motion file",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="V.mp4", help="MP4 to write")
    arguments.add_model(parser)
    parser.add_argument(
        "--subject",
        type=Path,
        metavar="FOLDER",
        help="weights finetuned on this person by jobs/finetune.py",
    )
    parser.add_argument(
        "--force-subject",
        action="store_true",
        help="do not warn if the photo does not look like the subject",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="render photos that show no whole, single, upright person as well",
    )
    parser.add_argument(
        "--backing",
        type=Path,
        metavar="B.mp4",
        help="before rendering, write a video of the warped photos with what the model has to "
        "invent in magenta",
    )
    arguments.add_preset(parser, default="exact")
    parser.add_argument(
        "--steps", type=int, help="number of denoising steps (default: the preset's)"
    )
    parser.add_argument(
        "--image-scale", type=float, help="image guidance scale s_I (default: the recipe's)"
    )
    parser.add_argument(
        "--pose-scale", type=float, help="pose guidance scale s_p (default: the recipe's)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the noise (default: %(default)s)"
    )
    arguments.add_chunk_size(parser)
    arguments.add_size(parser, what="the video")
    arguments.add_align(parser)
    arguments.add_estimator(parser)
    arguments.add_certificate(parser)
    arguments.add_render_savings(parser)


def run(args: argparse.Namespace) -> None:
    """Runs the command. Inputs are validated before the model is loaded."""
    check_output(args.out)
    if args.backing is not None:
        check_output(args.backing)
    signer = arguments.signer(args)
    photos = [video.read_photo(path) for path in args.photo]
    notes = check_photos(args.photo, photos, force=args.force)
    pipe = load_model(args.model, dtype=arguments.DTYPES[args.precision])
    recipe = pipe.recipe if args.size is None else pipe.recipe.at(*args.size)
    motion = read_motion(args.motion, estimator=args.estimator, recipe=recipe)
    if args.subject is not None:
        pipe.load_subject(args.subject)
    for note in notes:
        warn(note, PhotoWarning, stacklevel=2)
    arguments.place_on_device(pipe, args)
    if args.backing is not None:
        write_backing(args.backing, pipe, photos, motion, align=args.align, size=args.size)
    pipe.set_progress_bar_config(desc=f"{motion.num_frames} frames", unit="step")
    output = pipe(
        photos,
        motion,
        preset=args.preset,
        num_inference_steps=args.steps,
        image_scale=args.image_scale,
        pose_scale=args.pose_scale,
        seed=args.seed,
        chunk_size=args.chunk_size,
        align=args.align,
        check_subject=not args.force_subject,
        size=args.size,
        output_type="np",
    )
    frames = np.asarray(output.frames)
    provenance.write(args.out, frames, output.fps, code=watermark.code_of(frames.tobytes()))
    if signer is not None:
        signer.sign(args.out)
    print(f"{args.out}: {motion.num_frames} frames, {output.fps:g} fps")
    if output.backed is not None:
        mean, least = 100 * float(output.backed.mean()), 100 * float(output.backed.min())
        print(
            f"the photos back {mean:.0f}% of the visible body, {least:.0f}% in the frame with the "
            "least; the model invents the rest"
        )


def write_backing(
    path: Path,
    pipe: "DreamPosePipeline",
    photos: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    motion: poses.Motion,
    *,
    align: bool,
    size: tuple[int, int] | None,
) -> None:
    """Writes a video of the warped photos, with what no photo backs in magenta.

    Raises:
        InputError: the model does not warp photos.
    """
    # Imported here because it imports diffusers, which takes seconds.
    from dreampose.diffusion import generation

    request = generation.prepare(pipe, photos, motion, preset="fast", align=align, size=size)
    if request.warps is None:
        raise InputError("backing needs a model with a surface condition, got one without")
    warps = request.warps.numpy()
    pictures = np.ascontiguousarray(np.moveaxis(warps[:, :3], 1, -1))
    video.write(path, draw_backing(pictures, warps), request.fps)
    print(f"{path}: the warped photos, magenta where the model invents")


def check_photos(
    paths: Sequence[Path], photos: Sequence[UInt8[np.ndarray, "_ _ 3"]], *, force: bool
) -> list[str]:
    """What is wrong with photos, a line for each; refuses those that a render cannot use.

    Raises:
        InputError: a photo scores below 0.5 in `poses.check_photo`, unless `force`.
    """
    notes: list[str] = []
    for path, photo in zip(paths, photos, strict=True):
        checked = poses.check_photo(photo)
        if not checked.problems:
            continue
        text = f"photo: {str(path)!r} scores {checked.score:.2f}: {'; '.join(checked.problems)}"
        if not checked.is_usable and not force:
            raise InputError(f"{text}; --force renders it all the same")
        notes.append(text)
    return notes


def read_motion(path: Path, *, estimator: str, recipe: Recipe) -> poses.Motion:
    """Loads a motion file, or extracts the motion of a video.

    Raises:
        InputError: the file is neither, or no person can be tracked in the video.
    """
    if zipfile.is_zipfile(path) or path.suffix == ".npz":
        return poses.Motion.load(path)
    clip = video.VideoReader(path)
    height, width = data.working_size(clip, recipe)
    reader = poses.estimator(estimator, channels=recipe.pose_channels)
    return data.extract_motion(clip, reader, height=height, width=width, fit=recipe.frame_fit)


def check_output(path: Path) -> None:
    """Checks that a video can be written to `path`.

    Raises:
        InputError: the name does not end in .mp4, is a folder, or lies below a file.
    """
    if path.suffix.lower() != ".mp4":
        raise InputError(f"out must end in .mp4, got {str(path)!r}")
    if path.is_dir():
        raise InputError(f"out must be a file, got the folder {str(path)!r}")
    for parent in path.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"out must lie in a folder, got {str(path)!r}")
            return
