"""Extracts, checks and edits motions.

MOTION.npz is the track; MOTION.preview.mp4 shows the pose over the video. A motion file can be
used again and again: `python -m dreampose animate --motion MOTION.npz`. Poses that another
program has read from a video are taken over with --from; a motion file as SOURCE is edited.
"""

import argparse
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import photos, video
from dreampose.io.files import new_file
from dreampose.options import arguments
from dreampose.options.progress import ProgressBar
from dreampose.poses import editing, importers
from dreampose.poses.alignment import frame_person
from dreampose.poses.estimators import BlazePose, estimator
from dreampose.poses.extract import complete, cut, extract
from dreampose.poses.motion import Motion
from dreampose.poses.preview import draw_people, iterate_preview
from dreampose.types import Clip

Pictures = Iterable[UInt8[np.ndarray, "H W 3"]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's flags."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="video of one person moving, or a motion file to edit; with --from, a video, file or "
        "folder of poses",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="MOTION.npz", help="motion file to write"
    )
    arguments.add_estimator(parser)
    parser.add_argument(
        "--from",
        dest="form",
        choices=importers.FORMS,
        help="read poses made by other programs: npy is a folder of U and V arrays a frame, iuv a "
        "video or folder of IUV pictures, openpose JSON files (docs/poses.md)",
    )
    parser.add_argument(
        "--fps",
        type=float,
        help="of a video or motion file: frames per second to write, by interpolation; with "
        "--from a folder: frames per second of the poses",
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
        metavar="N|X,Y",
        help="follow the person of this number (--people), or who is nearest to this pixel at the "
        "beginning, instead of the largest",
    )
    parser.add_argument(
        "--people",
        action="store_true",
        help="only write MOTION.people.png, the first frame with every person numbered",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse the video where any frame was filled, jumps, is partly hidden or outside the "
        "maps, or may have left and right exchanged",
    )
    parser.add_argument(
        "--framed",
        action="store_true",
        help="place the person in the middle of the maps and follow them as a camera would",
    )
    parser.add_argument("--no-preview", action="store_true", help="do not write MOTION.preview.mp4")
    edits = parser.add_argument_group("edits, applied in this order")
    edits.add_argument(
        "--join",
        nargs="+",
        type=Path,
        default=[],
        metavar="M.npz",
        help="append these motions, with blends of --blend",
    )
    edits.add_argument(
        "--blend",
        type=float,
        default=0.0,
        metavar="SEC",
        help="seconds over which joined motions go into one another (default: %(default)s)",
    )
    edits.add_argument(
        "--foot-lock", action="store_true", help="hold standing feet in place (camera at rest)"
    )
    edits.add_argument(
        "--smooth", type=float, metavar="SEC", help="take out movement faster than this; no delay"
    )
    edits.add_argument("--speed", type=float, metavar="X", help="X times as fast")
    edits.add_argument("--mirror", action="store_true", help="left and right as in a mirror")
    edits.add_argument(
        "--loop", type=float, metavar="SEC", help="blend this much of the end into the beginning"
    )
    edits.add_argument(
        "--retarget",
        type=Path,
        metavar="PHOTO",
        help="give the motion the limb lengths of the person in a photo",
    )


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


def _person(text: str | None, source: Path) -> tuple[int, int] | None:
    """The pixel of the person asked for, by number or place."""
    if text is None:
        return None
    if not text.strip().isdigit():
        return _numbers(text, ",", "person", "a number that --people shows, or a pixel X,Y")
    places = BlazePose().find(_first_frame(source))
    number = int(text)
    if not 1 <= number <= len(places):
        raise InputError(
            f"person must be between 1 and {len(places)}, the people in the first frame, "
            f"got {number}"
        )
    x, y = places[number - 1]
    return round(x), round(y)


def _first_frame(source: Path) -> UInt8[np.ndarray, "H W 3"]:
    return next(iter(video.frames_of(source)))


def _write_people(source: Path, out: Path) -> int:
    """Writes the first frame with every person numbered."""
    frame = _first_frame(source)
    places = BlazePose().find(frame)
    if not places:
        raise InputError(f"people: no person is found in the first frame of {str(source)!r}")
    picture = out.with_suffix(".people.png")
    with new_file(picture) as part, part.open("wb") as file:
        Image.fromarray(draw_people(frame, places)).save(file, "PNG")
    for number, (x, y) in enumerate(places, start=1):
        print(f"{number}: x={x:.0f}, y={y:.0f}", file=sys.stderr)
    print(picture)
    return 0


def _estimate(
    values: argparse.Namespace, height: int, width: int, person: tuple[int, int] | None
) -> tuple[Pictures, Motion]:
    """Reads the poses of a video."""
    if values.canvas is not None:
        raise InputError(f"canvas needs --from, got {values.canvas} without it")
    options: dict[str, Any] = {"channels": values.channels}
    if person is not None:
        if values.estimator == "catwalk":
            raise InputError("person needs an estimator that reads the picture, got catwalk")
        options["person"] = person
    reader = estimator(values.estimator, **options)
    whole = video.VideoReader(values.source)
    clip = cut(whole, *_range(values, len(whole), whole.fps))
    with ProgressBar(total=len(clip), desc="pose", unit="frame") as bar:
        return clip, extract(clip, reader, height=height, width=width, progress=bar.update)


def _take_over(
    values: argparse.Namespace, height: int, width: int, person: tuple[int, int] | None
) -> tuple[Pictures, Motion]:
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


def _load(values: argparse.Namespace) -> tuple[Pictures, Motion]:
    """Reads a motion file to edit it; its preview has blank frames."""
    motion = Motion.load(values.source)
    motion = motion.between(*_range(values, motion.num_frames, motion.fps))
    blank = np.full((motion.height, motion.width, 3), photos.BACKGROUND, np.uint8)
    return [blank] * motion.num_frames, motion


def _check_edits(values: argparse.Namespace) -> None:
    """Refuses edits that cannot be, before the poses are read."""
    for name, least in (("smooth", 0), ("blend", 0)):
        value = getattr(values, name)
        if value is not None and not value >= least:
            raise InputError(f"{name}: must be at least {least} seconds, got {value:g}")
    for name in ("speed", "loop", "fps"):
        value = getattr(values, name)
        if value is not None and not value > 0:
            raise InputError(f"{name}: must be positive, got {value:g}")
    for path in (*values.join, *([values.retarget] if values.retarget is not None else [])):
        if not path.is_file():
            raise InputError(f"no such file: {str(path)!r}")


def _edited(motion: Motion, values: argparse.Namespace) -> Motion:
    """The motion after the edits asked for."""
    if values.fps is not None and values.form is None:
        motion = motion.resample(values.fps)
    if values.join:
        motion = editing.join([motion, *map(Motion.load, values.join)], values.blend)
    if values.foot_lock:
        motion = editing.lock_feet(motion)
    if values.smooth is not None:
        motion = editing.smooth(motion, values.smooth)
    if values.speed is not None:
        motion = editing.change_speed(motion, values.speed)
    if values.mirror:
        motion = editing.mirror(motion)
    if values.loop is not None:
        motion = editing.loop(motion, values.loop)
    if values.retarget is not None:
        photo = Clip(
            frames=video.read_photo(values.retarget)[None], fps=1.0, source=str(values.retarget)
        )
        body = extract(photo, BlazePose(), height=motion.height, width=motion.width)
        motion = editing.retarget(motion, body)
    return frame_person(motion) if values.framed else motion


def run(values: argparse.Namespace) -> int:
    """Writes the motion and its preview.

    Raises:
        InputError: a flag or the video cannot be used.
    """
    height, width = _numbers(values.size, "x", "size", "HEIGHTxWIDTH in pixels, such as 160x128")
    if min(height, width) < 16:
        raise InputError(f"size must be at least 16x16, got {values.size}")
    out: Path = values.out
    if out.suffix != ".npz":
        raise InputError(f"out must end in .npz, got {str(out)!r}")
    _check_edits(values)
    is_motion = values.form is None and values.source.suffix == ".npz"
    if values.people:
        if is_motion or values.form is not None:
            raise InputError("people needs a video, got poses")
        return _write_people(values.source, out)
    if is_motion:
        frames, motion = _load(values)
    elif values.form is not None:
        person = values.person
        if person is not None:
            person = _numbers(person, ",", "person", "a pixel X,Y")
        frames, motion = _take_over(values, height, width, person)
    else:
        person = _person(values.person, values.source)
        frames, motion = _estimate(values, height, width, person)
    quality = motion.quality
    if values.strict and not quality.is_clean:
        raise InputError("strict: " + "; ".join(quality.sentences()))
    edited = _edited(motion, values)
    edited.save(out)
    for sentence in quality.sentences():
        print(sentence, file=sys.stderr)
    if not values.no_preview:
        preview = out.with_suffix(".preview.mp4")
        with warnings.catch_warnings():
            # The reader has warned of what is wrong with the file when the poses were read.
            warnings.simplefilter("ignore")
            video.write(preview, iterate_preview(frames, motion, zoom=True), motion.fps)
        print(f"wrote {preview}", file=sys.stderr)
    print(out)
    return 0
