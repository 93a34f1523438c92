"""Reads the poses of the person in a video into a motion file, and draws a preview of them.

MOTION.npz is the track; MOTION.preview.mp4 shows the pose over the video. A motion file can be
used again and again: `python -m dreampose animate --motion MOTION.npz`. Poses that another
program has read from a video are taken over with --from.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.options import arguments
from dreampose.poses import importers
from dreampose.poses.alignment import frame_person
from dreampose.poses.estimators import estimator
from dreampose.poses.extract import complete, cut, extract
from dreampose.poses.grid import draw_preview
from dreampose.poses.motion import Motion
from dreampose.types import Clip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="VIDEO",
        help="video of one person moving; with --from, a video, file or folder of poses",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="MOTION.npz", help="motion file to write"
    )
    arguments.add_estimator(parser)
    parser.add_argument(
        "--from",
        dest="form",
        choices=importers.FORMS,
        help="take over poses made elsewhere: npy is a folder of U and V arrays a frame, iuv a "
        "video or folder of IUV pictures, openpose JSON files (docs/poses.md)",
    )
    parser.add_argument(
        "--fps", type=float, help="with --from a folder: frames per second of the poses"
    )
    parser.add_argument(
        "--canvas",
        metavar="HxW",
        help="with --from openpose: height and width of the pictures, where the files lack them",
    )
    parser.add_argument(
        "--channels",
        type=int,
        default=2,
        help="of the maps: 2 are U and V; 3 are part, U and V, for models made for these "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        default="160x128",
        metavar="HxW",
        help="height and width of the pose maps in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--frames", metavar="A:B", help="only the frames A to B-1; the first frame is 0"
    )
    parser.add_argument("--start", type=float, metavar="SEC", help="begin here, in seconds")
    parser.add_argument("--end", type=float, metavar="SEC", help="end here, in seconds")
    parser.add_argument(
        "--person",
        metavar="X,Y",
        help="follow the person who is nearest to this pixel at the beginning, instead of the "
        "largest",
    )
    parser.add_argument(
        "--framed",
        action="store_true",
        help="place the person in the middle of the maps and follow them as a camera would",
    )
    parser.add_argument("--no-preview", action="store_true", help="do not write MOTION.preview.mp4")


def _numbers(text: str, separator: str, field: str, expected: str) -> tuple[int, int]:
    """Two whole numbers joined by a separator."""
    first, found, second = text.partition(separator)
    if not found or not first.strip().isdigit() or not second.strip().isdigit():
        raise InputError(f"{field} must be {expected}, got {text!r}")
    return int(first), int(second)


def _range(values: argparse.Namespace, num_frames: int, fps: float) -> tuple[int, int]:
    """The frames asked for, by number or by time."""
    if values.frames is not None:
        if values.start is not None or values.end is not None:
            raise InputError("frames must be given by --frames or by --start and --end, got both")
        return _numbers(values.frames, ":", "frames", "a range A:B of frame numbers")
    start = 0.0 if values.start is None else values.start
    end = num_frames / fps if values.end is None else values.end
    first = round(start * fps)
    if not 0 <= first < num_frames:
        raise InputError(
            f"start must be between 0 and the video's end at {num_frames / fps:.2f} s, "
            f"got {start:g} s"
        )
    if end <= start:
        raise InputError(f"end must be after the start at {start:g} s, got {end:g} s")
    return first, max(first + 1, min(round(end * fps), num_frames))


def _estimate(
    values: argparse.Namespace, height: int, width: int, person: tuple[int, int] | None
) -> tuple[Clip, Motion]:
    """Reads the poses of a video."""
    for name in ("fps", "canvas"):
        if getattr(values, name) is not None:
            raise InputError(f"{name} needs --from, got {getattr(values, name)} without it")
    options: dict[str, Any] = {"channels": values.channels}
    if person is not None:
        if values.estimator == "catwalk":
            raise InputError("person needs an estimator that looks at the picture, got catwalk")
        options["person"] = person
    reader = estimator(values.estimator, **options)
    clip = video.read(values.source)
    clip = cut(clip, *_range(values, len(clip.frames), clip.fps))
    with tqdm(total=len(clip.frames), desc="pose", unit="frame") as bar:
        return clip, extract(clip, reader, height=height, width=width, progress=bar.update)


def _take_over(
    values: argparse.Namespace, height: int, width: int, person: tuple[int, int] | None
) -> tuple[Clip, Motion]:
    """Reads poses that another program made."""
    canvas = values.canvas
    if canvas is not None:
        canvas = _numbers(canvas, "x", "canvas", "HEIGHTxWIDTH in pixels, such as 1280x720")
    imported = importers.read(
        values.source,
        values.form,
        height=height,
        width=width,
        fps=values.fps,
        channels=values.channels,
        canvas=canvas,
        person=person,
    )
    num_frames, fps = len(imported.clip.frames), imported.clip.fps
    imported = imported.cut(*_range(values, num_frames, fps))
    motion = complete(
        imported.track,
        height=height,
        width=width,
        fps=fps,
        source=imported.clip.source,
        estimator=values.form,
        first_frame=imported.clip.first_frame,
    )
    return imported.clip, motion


def run(values: argparse.Namespace) -> int:
    """Writes the motion and its preview.

    Raises:
        InputError: a flag or the video cannot be used.
    """
    height, width = _numbers(values.size, "x", "size", "HEIGHTxWIDTH in pixels, such as 160x128")
    if min(height, width) < 16:
        raise InputError(f"size must be at least 16x16, got {values.size}")
    person = (
        None if values.person is None else _numbers(values.person, ",", "person", "a pixel X,Y")
    )
    out: Path = values.out
    if out.suffix != ".npz":
        raise InputError(f"out must end in .npz, got {str(out)!r}")
    read = _estimate if values.form is None else _take_over
    clip, motion = read(values, height, width, person)
    (frame_person(motion) if values.framed else motion).save(out)
    if motion.num_filled:
        print(
            f"{motion.num_filled} of {motion.num_frames} frames show no clear pose "
            "and were filled in from their neighbours",
            file=sys.stderr,
        )
    if not values.no_preview:
        preview = out.with_suffix(".preview.mp4")
        video.write(preview, draw_preview(clip.frames, motion), motion.fps)
        print(f"wrote {preview}", file=sys.stderr)
    print(out)
    return 0
