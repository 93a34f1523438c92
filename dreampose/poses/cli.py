"""Reads the poses of the person in a video into a motion file, and draws a preview of them.

MOTION.npz is the track; MOTION.preview.mp4 shows the pose over the video. A motion file can be
used again and again: `python -m dreampose animate --motion MOTION.npz`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreampose import video
from dreampose.errors import InputError
from dreampose.poses.alignment import frame_person
from dreampose.poses.estimators import ESTIMATORS, estimator
from dreampose.poses.extract import cut, extract
from dreampose.poses.grid import draw_preview


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument("video", type=Path, metavar="VIDEO", help="video of one person moving")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="MOTION.npz", help="motion file to write"
    )
    parser.add_argument(
        "--estimator",
        default="blazepose",
        choices=ESTIMATORS,
        help="blazepose reads any video; catwalk reads the exact poses beside a rendered one "
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
        help="follow the person whose hips are nearest to this pixel at the beginning, "
        "instead of the largest",
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


def run(values: argparse.Namespace) -> int:
    """Writes the motion and its preview.

    Raises:
        InputError: a flag or the video cannot be used.
    """
    height, width = _numbers(values.size, "x", "size", "HEIGHTxWIDTH in pixels, such as 160x128")
    if min(height, width) < 16:
        raise InputError(f"size must be at least 16x16, got {values.size}")
    options: dict[str, Any] = {}
    if values.person is not None:
        if values.estimator != "blazepose":
            raise InputError(f"person needs the estimator blazepose, got {values.estimator}")
        options["person"] = _numbers(values.person, ",", "person", "a pixel X,Y")
    out: Path = values.out
    if out.suffix != ".npz":
        raise InputError(f"out must end in .npz, got {str(out)!r}")
    clip = video.read(values.video)
    clip = cut(clip, *_range(values, len(clip.frames), clip.fps))
    with tqdm(total=len(clip.frames), desc="pose", unit="frame") as bar:
        motion = extract(
            clip,
            estimator(values.estimator, **options),
            height=height,
            width=width,
            progress=bar.update,
        )
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
