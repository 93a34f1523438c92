"""Validation of uploaded photos and motions.

The type follows from the content, never from the name. Declared sizes are checked against the
limits before decoding, and decoded frames again one by one. FFmpeg is restricted to the container
format of the first bytes, so that it never opens a playlist, which could name other files.
"""

import io
import math
import shutil
import time
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.io import formats, photos
from dreampose.io.decoder import VideoReader
from dreampose.poses.motion import Motion
from serve.config import Limits

PHOTO_KINDS = ("PNG", "JPEG", "WEBP", "HEIC", "AVIF")
CONTAINERS = {kind: formats.FFMPEG_FORMAT[kind] for kind in ("mp4", "webm", "avi")}
"""Suffix of a stored video, and FFmpeg's name of its format."""
MIN_SIDE, MAX_SIDE = 16, 16384
"""Side of a photo or frame in pixels."""
MAX_TRACK_BYTES = 256 * 2**20
"""Uncompressed size of a motion file."""
MAX_TRACK_ARRAYS = 32
SAME_ASPECT = 0.02
"""Largest log-ratio of aspects, as in `dreampose.diffusion.generation.prepare`."""


@dataclass(frozen=True, kw_only=True)
class MotionInfo:
    """Properties of a motion: suffix of the stored file, frames, frames per second."""

    suffix: str
    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Length of the motion."""
        return self.num_frames / self.fps


@dataclass(frozen=True, kw_only=True)
class ReceivedMotion:
    """A checked motion on this disk.

    Attributes:
        path: of the file to store.
        info: its properties.
    """

    path: Path
    info: MotionInfo


def normalize_photo(content: bytes, limits: Limits, *, max_side: int, number: int = 1) -> bytes:
    """Re-encodes a photo as an upright sRGB PNG without metadata.

    Args:
        content: the file.
        limits: largest size, checked before decoding.
        max_side: longest side in pixels of the result; larger photos are reduced.
        number: of the photo in its request, for error messages.

    Raises:
        InputError: the photo has another format, is broken, too small or too large.
    """
    name = f"photo {number}"
    if formats.sniff(content[: formats.HEAD_BYTES]) not in PHOTO_KINDS:
        raise InputError(f"{name} is not a PNG, JPEG, WebP, HEIC or AVIF file; convert it to PNG")
    try:
        height, width = photos.size(content)
        _check_size(name, width, height, limits.photo_megapixels)
        if min(height, width) * max_side < MIN_SIDE * max(height, width):
            raise InputError(f"{name} is too elongated: {width}x{height} pixels; crop it")
        pixels = photos.read(content, max_side=max_side)
    except InputError as error:
        message = str(error).removeprefix("photo: ").replace("the upload", name)
        raise InputError(message if message.startswith(name) else f"{name}: {message}") from error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def check_motion(path: Path, limits: Limits, recipe: Recipe) -> MotionInfo:
    """Checks a motion, a video or a pose track (`.npz`), by reading all of it.

    Args:
        path: the upload.
        limits: of frames, pixels and time.
        recipe: of the model: pose window and aspect.

    Raises:
        InputError: the file is neither, is broken, or exceeds a limit.
    """
    with path.open("rb") as file:
        kind = formats.sniff(file.read(formats.HEAD_BYTES))
    if kind == "npz":
        facts = _check_track(path, limits, recipe)
    elif kind in CONTAINERS:
        facts = _check_video(path, kind, limits)
    else:
        raise InputError(
            "motion must be a video file (MP4, MOV, WebM, MKV or AVI) or a motion file (.npz), "
            "got neither"
        )
    if facts.num_frames < recipe.num_poses:
        raise InputError(
            f"motion must hold at least {recipe.num_poses} frames, the model's pose window, "
            f"got {facts.num_frames}"
        )
    if facts.seconds > limits.max_seconds:
        raise InputError(
            f"motion must last at most {limits.max_seconds:g} s, got {facts.seconds:.1f} s"
        )
    return facts


def _check_video(path: Path, kind: str, limits: Limits) -> MotionInfo:
    deadline = time.monotonic() + limits.probe_timeout_s
    try:
        with av.open(str(path), format=CONTAINERS[kind]) as container:
            if not container.streams.video:
                raise InputError("motion must hold a video stream, got none")
            stream = container.streams.video[0]
            # None if FFmpeg has no decoder, against PyAV's type.
            decoder: Any = stream.codec_context
            if decoder is None:
                raise InputError("motion: no decoder for the video codec; convert it to H.264")
            rate = stream.average_rate or stream.guessed_rate
            fps = _check_fps(float(rate) if rate else 0.0, limits)
            size = decoder.width, decoder.height
            _check_size("motion", *size, limits.frame_megapixels)
            # Keeps the decoder from allocating frames larger than the header declares; 10% more,
            # since it counts whole macroblocks.
            most = int(1.1e6 * limits.frame_megapixels) + 4096
            decoder.options = {"max_pixels": str(most)}
            num_frames = 0
            for frame in container.decode(stream):
                num_frames += 1
                # Frames may differ from the size in the header.
                if (frame.width, frame.height) != size:
                    raise InputError(
                        f"motion must keep its size of {size[0]}x{size[1]}, "
                        f"got {frame.width}x{frame.height} in frame {num_frames - 1}"
                    )
                _check_amount(num_frames, *size, limits)
                if time.monotonic() > deadline:
                    raise InputError(
                        f"motion must be decoded within {limits.probe_timeout_s:g} s, "
                        f"got {num_frames} frames in that time"
                    )
    except (FFmpegError, ValueError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"motion must be a video file that can be decoded ({type(error).__name__})"
        ) from error
    # What the extractor will read: a constant rate, by the time stamps of the file.
    try:
        reader = VideoReader(path)
    except InputError as error:
        # Errors go to clients, which must not see paths of the server.
        message = str(error).replace(repr(str(path)), "the upload").replace(str(path), "the upload")
        raise InputError(f"motion must be a video file that can be decoded: {message}") from error
    _check_amount(reader.num_frames, *size, limits)
    return MotionInfo(
        suffix=f".{kind}",
        num_frames=min(num_frames, reader.num_frames) if reader.fps == fps else reader.num_frames,
        fps=_check_fps(reader.fps, limits),
    )


def rewrite_motion(source: Path, target: Path, info: MotionInfo) -> None:
    """Writes the part of a checked motion that is used: poses, or the video stream alone.

    The packets of the stream are copied, not encoded again.

    Args:
        source: the upload.
        target: of the stored file.
        info: of the upload.
    """
    if info.suffix == ".npz":
        Motion.load(source).save(target)
        return
    name = CONTAINERS[info.suffix[1:]]
    try:
        with av.open(str(source), format=name) as given, av.open(str(target), "w", name) as kept:
            stream = given.streams.video[0]
            copy = kept.add_stream_from_template(stream)
            for packet in given.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    kept.mux(packet)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before, after = VideoReader(source), VideoReader(target)
        same = (before.num_frames, before.fps, before.height, before.width) == (
            after.num_frames, after.fps, after.height, after.width
        )  # fmt: skip
    except (FFmpegError, ValueError):
        same = False
    if not same:
        # A stream that FFmpeg decodes but does not write to this container.
        shutil.copyfile(source, target)


def _check_track(path: Path, limits: Limits, recipe: Recipe) -> MotionInfo:
    try:
        _check_members(path, limits)
        motion = Motion.load(path)
    except InputError as error:
        # Errors go to clients, which must not see paths of the server.
        raise InputError(str(error).replace(f"{path.parent}/", "")) from error
    except Exception as error:
        raise InputError(
            f"motion must be a motion file that can be read ({type(error).__name__})"
        ) from error
    fps = _check_fps(motion.fps, limits)
    num_frames, num_joints = motion.num_frames, motion.joints.shape[1]
    consistent = (
        motion.maps.shape[1:2] == (2,)
        and motion.joints.shape == (num_frames, num_joints, 4)
        and motion.confidence.shape == (num_frames,)
        and len(motion.joint_names) in (0, num_joints)
        and bool(np.isfinite(motion.joints).all() and np.isfinite(motion.confidence).all())
    )
    if not consistent:
        raise InputError("motion must hold maps, joints and confidence of the same frames")
    check_aspect(motion, recipe)
    return MotionInfo(suffix=".npz", num_frames=num_frames, fps=fps)


def check_aspect(motion: Motion, recipe: Recipe) -> None:
    """Checks that poses have the aspect of the frames.

    Raises:
        InputError: they would be stretched.
    """
    ratio, expected = motion.width / motion.height, recipe.width / recipe.height
    if abs(math.log(ratio / expected)) > SAME_ASPECT:
        raise InputError(
            f"motion must have the frames' aspect {recipe.height}x{recipe.width}, "
            f"got {motion.height}x{motion.width}"
        )


def _check_members(path: Path, limits: Limits) -> None:
    """Checks the archive headers before anything is decompressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > MAX_TRACK_ARRAYS or total > MAX_TRACK_BYTES:
            raise InputError(
                f"motion must unpack to at most {MAX_TRACK_BYTES >> 20} MB in "
                f"{MAX_TRACK_ARRAYS} arrays, got {total >> 20} MB in {len(members)}"
            )
        shapes = {member.filename: _shape(archive, member) for member in members}
    maps = shapes.get("maps.npy", ())
    if len(maps) != 4:
        raise InputError(f"motion must hold maps of 4 dimensions, got shape {maps}")
    num_frames, _, height, width = maps
    _check_size("motion", width, height, limits.frame_megapixels)
    _check_amount(num_frames, width, height, limits)


def _shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """Shape of an array whose declared and actual sizes agree."""
    read_header: Any = np.lib.format
    with archive.open(member) as file:
        version = read_header.read_magic(file)
        read = (
            read_header.read_array_header_1_0
            if version == (1, 0)
            else read_header.read_array_header_2_0
        )
        shape, _, dtype = read(file)
        rest = member.file_size - file.tell()
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != rest:
        raise InputError(f"motion: the array {member.filename!r} is damaged or not numeric")
    return shape


def _check_size(what: str, width: int, height: int, megapixels: float) -> None:
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{what} must be {MIN_SIDE} to {MAX_SIDE} pixels wide and high, got {width}x{height}"
        )
    if width * height > megapixels * 1e6:
        raise InputError(
            f"{what} must hold at most {megapixels:g} megapixels, got {width}x{height}"
        )


def _check_amount(num_frames: int, width: int, height: int, limits: Limits) -> None:
    if num_frames > limits.max_frames:
        raise InputError(f"motion must hold at most {limits.max_frames} frames, got more")
    if num_frames * width * height > limits.video_megapixels * 1e6:
        raise InputError(
            f"motion must hold at most {limits.video_megapixels:g} megapixels in all its frames, "
            f"got more: send a smaller or shorter video"
        )


def _check_fps(fps: float, limits: Limits) -> float:
    if not (math.isfinite(fps) and 1 <= fps <= limits.max_fps):
        raise InputError(f"motion must have 1 to {limits.max_fps:g} frames per second, got {fps:g}")
    return fps
