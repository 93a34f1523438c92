"""Videos and photos as pixels; owner of the [-1, 1] range."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dreampose.errors import InputError
from dreampose.io.decoder import VideoReader
from dreampose.io.files import new_file
from dreampose.io.photos import read as read_photo
from dreampose.types import Clip

__all__ = [
    "VideoReader",
    "count",
    "fit",
    "frames_of",
    "read",
    "read_photo",
    "to_model",
    "to_pixels",
    "write",
]


def to_model(frames: UInt8[np.ndarray, "b H W 3"]) -> Float[Tensor, "b 3 H W"]:
    """8-bit pixels to floats in [-1, 1], channels first."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: Float[Tensor, "b 3 H W"]) -> UInt8[np.ndarray, "b H W 3"]:
    """Inverse of `to_model`: rounds and clips, with one fixed range for every frame."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def read(
    path: str | Path | VideoReader,
    *,
    max_frames: int | None = None,
    size: tuple[int, int] | None = None,
    how: str = "letterbox",
    strict: bool = False,
) -> Clip:
    """Decodes a video, all of it or its first `max_frames` frames; see `VideoReader`.

    The frames of a long video take much memory: `VideoReader` gives them one by one.

    Args:
        path: of the file, or a reader of it.
        max_frames: at most.
        size: height and width that frames are fitted into while they are read.
        how: see `fit`.
        strict: see `VideoReader`.

    Raises:
        InputError: the file is missing, is not a video, or holds no frame; or is cut off, damaged
            or changes its size, where `strict`.
    """
    reader = path if isinstance(path, VideoReader) else VideoReader(path, strict=strict)
    length = reader.num_frames if max_frames is None else min(max_frames, reader.num_frames)
    height, width = size or (reader.height, reader.width)
    frames = np.empty((length, height, width, 3), np.uint8)
    number = 0
    for frame in itertools.islice(reader, length):
        frames[number] = fit(frame[None], height, width, how)[0]
        number += 1
    return Clip(frames=frames[:number], fps=reader.fps, source=reader.source)


def frames_of(path: str | Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames that `read` gives, one in memory at a time.

    Raises:
        InputError: the file is missing or is not a video.
    """
    yield from VideoReader(path)


def count(path: str | Path) -> int:
    """Number of the frames that `read` gives, at least one; all of the video is decoded.

    Raises:
        InputError: as `read`.
    """
    return VideoReader(path).count()


def write(
    path: str | Path,
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    fps: float,
    *,
    tags: Mapping[str, str] | None = None,
    portable: bool = False,
) -> None:
    """Writes an H.264 MP4 that browsers play; the file appears whole or not at all.

    Equal frames give equal files on one kind of processor. Odd sizes are padded by one repeated
    pixel, since H.264's 4:2:0 needs even ones.

    Args:
        path: of the file.
        frames: in order, one size.
        fps: frames per second.
        tags: what the file says of itself; MP4 knows `title`, `comment`, `description`, ….
        portable: without x264's vector code, which gives other files on some processors, and at
            its own pace instead of its `veryfast`; takes about ten times as long.
    """
    rate = Fraction(fps).limit_denominator(1001)
    faststart = {"movflags": "+faststart"}
    with new_file(path) as part, av.open(str(part), "w", "mp4", options=faststart) as container:
        container.metadata.update(tags or {})
        stream = None
        for image in frames:
            height, width = image.shape[:2]
            if height % 2 or width % 2:
                image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                # x264's macroblock tree reads uninitialised memory: one small video
                # in ten came out as other bytes, up to 4 levels apart.
                # And its vector code does not decide alike from one processor to another.
                code = "no-mbtree=1:asm=0" if portable else "no-mbtree=1"
                # A third of the work; the same PSNR to 0.2 dB and 5% more bytes at 640x512.
                preset = "medium" if portable else "veryfast"
                options = {"crf": "12", "preset": preset, "x264-params": code}
                stream = container.add_stream("libx264", rate=rate, options=options)
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuv420p"
                # The number of threads changes the file; that of cores must not.
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is None:
            raise InputError(f"frames must hold at least one frame to write {str(path)!r}")
        container.mux(stream.encode(None))


def fit(
    frames: UInt8[np.ndarray, "t H W 3"], height: int, width: int, how: str = "letterbox"
) -> UInt8[np.ndarray, "t h w 3"]:
    """Scales frames to `height x width`.

    Args:
        frames: of any size.
        height: in pixels.
        width: in pixels.
        how: 'letterbox' keeps the aspect, with bars in the median colour of the frame's edges so
            that a studio's background goes on; 'stretch' fills the size.
    """
    _, old_height, old_width, _ = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
    if how == "stretch":
        smaller = height * width < old_height * old_width
        method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return np.stack([cv2.resize(x, (width, height), interpolation=method) for x in frames])
    scale = min(height / old_height, width / old_width)
    new_height, new_width = max(1, round(old_height * scale)), max(1, round(old_width * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    top, left = (height - new_height) // 2, (width - new_width) // 2
    fitted = []
    for frame in frames:
        small = cv2.resize(frame, (new_width, new_height), interpolation=method)
        edges = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]])
        canvas = np.empty((height, width, 3), np.uint8)
        canvas[:] = np.median(edges, axis=0).astype(np.uint8)
        canvas[top : top + new_height, left : left + new_width] = small
        fitted.append(canvas)
    return np.stack(fitted)
