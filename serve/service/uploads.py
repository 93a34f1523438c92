"""Looks at what users upload before anything else does. Knows nothing of HTTP or Ray.

Contents decide, never names. What a file claims of itself (pixels, frames, bytes once unpacked) is
held against the limits before it is decoded, and what comes out of decoding is held against them
again, frame by frame. FFmpeg is told the one container format that the first bytes name, so that a
playlist, which could have it open other files, is never taken for a video.
"""

import io
import math
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image, ImageOps

from dreampose.config import Recipe
from dreampose.errors import InputError
from dreampose.poses.motion import Motion
from serve.config import Limits

PHOTOS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff"}
CONTAINERS = {"mp4": "mov", "webm": "matroska", "avi": "avi"}
"""Suffix under which an upload is kept, and FFmpeg's name of the format."""
MIN_SIDE, MAX_SIDE = 16, 16384
"""Of a photo or frame, in pixels; thinner ones show nobody, longer ones overflow decoders."""
TRACK_BYTES = 256 * 2**20
"""A motion file's size once unpacked."""
TRACK_MEMBERS = 32
SAME_ASPECT = 0.02
"""Largest difference of aspects, as in `dreampose.diffusion.generation.prepare`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a motion: suffix for keeping it, frames, frames per second."""

    suffix: str
    num_frames: int
    fps: float

    @property
    def seconds(self) -> float:
        """Length of the motion."""
        return self.num_frames / self.fps


def sniff(head: bytes) -> str:
    """What a file is by its first 16 bytes: 'PNG', 'JPEG', 'WEBP', 'mp4', …, '' if unknown."""
    for name, magic in PHOTOS.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF":
        return {b"WEBP": "WEBP", b"AVI ": "avi"}.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    return "npz" if head.startswith(b"PK\x03\x04") else ""


def check_photo(content: bytes, limits: Limits, *, number: int = 1) -> None:
    """Decodes a photo whole, after looking at the size it claims.

    Args:
        content: the file.
        limits: of pixels.
        number: of the photo in its request, for the message.

    Raises:
        InputError: it is no PNG, JPEG or WebP, is broken, too small or too large.
    """
    kind = sniff(content[:16])
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise InputError(f"photo must be a picture (PNG, JPEG or WebP), got none as photo {number}")
    try:
        with Image.open(io.BytesIO(content), formats=[kind]) as image:
            _check_size(f"photo {number}", *image.size, limits.photo_megapixels)
            ImageOps.exif_transpose(image).convert("RGB")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"photo must be a picture that can be decoded whole, got photo {number} "
            f"({type(error).__name__})"
        ) from error


def check_motion(path: Path, limits: Limits, recipe: Recipe) -> Facts:
    """Reads a motion to its end, a video or a pose track (`.npz`), keeping none of it.

    Args:
        path: the upload, under whatever name.
        limits: of frames, pixels and time.
        recipe: of the model, which wants a pose window and an aspect.

    Raises:
        InputError: it is neither, is broken, or is beyond a limit.
    """
    with path.open("rb") as file:
        kind = sniff(file.read(16))
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


def _check_video(path: Path, kind: str, limits: Limits) -> Facts:
    deadline = time.monotonic() + limits.probe_timeout_s
    try:
        with av.open(str(path), format=CONTAINERS[kind]) as container:
            if not container.streams.video:
                raise InputError("motion must hold a video stream, got none")
            stream = container.streams.video[0]
            # PyAV's types do not say that it is missing where FFmpeg has no such decoder.
            decoder: Any = stream.codec_context
            if decoder is None:
                raise InputError("motion must be of a codec that can be decoded, got another")
            rate = stream.average_rate or stream.guessed_rate
            fps = _check_fps(float(rate) if rate else 0.0, limits)
            size = decoder.width, decoder.height
            _check_size("motion", *size, limits.frame_megapixels)
            # Frames may be larger than the header says: the decoder allocates none of those. A
            # tenth more, since it counts in whole blocks.
            most = int(1.1e6 * limits.frame_megapixels) + 4096
            decoder.options = {"max_pixels": str(most)}
            num_frames = 0
            for frame in container.decode(stream):
                num_frames += 1
                # A stream's first frames may be of another size than its header says.
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
    return Facts(suffix=f".{kind}", num_frames=num_frames, fps=fps)


def _check_track(path: Path, limits: Limits, recipe: Recipe) -> Facts:
    try:
        _check_members(path, limits)
        motion = Motion.load(path)
    except InputError as error:
        # Where the server keeps files is nobody's business.
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
    return Facts(suffix=".npz", num_frames=num_frames, fps=fps)


def check_aspect(motion: Motion, recipe: Recipe) -> None:
    """Refuses poses that would be stretched.

    Raises:
        InputError: their aspect is not that of the recipe's frames.
    """
    ratio, expected = motion.width / motion.height, recipe.width / recipe.height
    if abs(math.log(ratio / expected)) > SAME_ASPECT:
        raise InputError(
            f"motion must have the frames' aspect {recipe.height}x{recipe.width}, "
            f"got {motion.height}x{motion.width}"
        )


def _check_members(path: Path, limits: Limits) -> None:
    """Reads the headers alone, so that nothing is unpacked that is larger than it should be."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if len(members) > TRACK_MEMBERS or total > TRACK_BYTES:
            raise InputError(
                f"motion must unpack to at most {TRACK_BYTES >> 20} MB in {TRACK_MEMBERS} arrays, "
                f"got {total >> 20} MB in {len(members)}"
            )
        shapes = {member.filename: _shape(archive, member) for member in members}
    maps = shapes.get("maps.npy", ())
    if len(maps) != 4:
        raise InputError(f"motion must hold maps of 4 dimensions, got shape {maps}")
    num_frames, _, height, width = maps
    _check_size("motion", width, height, limits.frame_megapixels)
    _check_amount(num_frames, width, height, limits)


def _shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[int, ...]:
    """An array's shape, if as many bytes follow as it needs."""
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
        raise InputError(f"motion must hold plain arrays, got a broken one in {member.filename!r}")
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
