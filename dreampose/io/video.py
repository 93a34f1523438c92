"""Reading, writing and resizing of photos and videos; sole owner of the [-1, 1] convention.

Knows nothing of models. Pixels travel as 8-bit RGB arrays; models see floats in [-1, 1].
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from dreampose.errors import InputError
from dreampose.io.files import new_file
from dreampose.types import Clip

BACKGROUND = 255
"""Grey level that letterboxing fills in."""


def to_model(frames: UInt8[np.ndarray, "b H W 3"]) -> Float[Tensor, "b 3 H W"]:
    """8-bit pixels to floats in [-1, 1], channels first."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_pixels(images: Float[Tensor, "b 3 H W"]) -> UInt8[np.ndarray, "b H W 3"]:
    """Inverse of `to_model`: rounds and clips, with one fixed range for every frame."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def read(path: str | Path, *, max_frames: int | None = None) -> Clip:
    """Decodes the first video stream of a file, all of it or its first `max_frames` frames.

    Upright, as players show it: phones film lying and note the turn beside the frames.

    Raises:
        InputError: the file is missing, is not a video, or holds no frame.
    """
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        decoded = itertools.islice(container.decode(stream), max_frames)
        frames = [upright(frame) for frame in decoded]
    _require(len(frames), rate, path)
    return Clip(frames=np.stack(frames), fps=float(rate or 0), source=str(path))


def frames_of(path: str | Path) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames that `read` gives, one in memory at a time.

    Raises:
        InputError: the file is missing or is not a video.
    """
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            yield upright(frame)


def count(path: str | Path) -> int:
    """Number of the frames that `read` gives, at least one; keeps none in memory.

    Raises:
        InputError: as `read`.
    """
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        number = sum(1 for _ in container.decode(stream))
    _require(number, rate, path)
    return number


@contextmanager
def _opened(path: str | Path) -> Generator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream; what is wrong with them becomes a sentence."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"video must be an existing file, got {str(path)!r}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"video must hold a video stream, got none in {str(path)!r}")
            stream = container.streams.video[0]
            # PyAV's types do not say that it is missing where FFmpeg has no such decoder.
            decoder: Any = stream.codec_context
            if decoder is None:
                raise InputError(f"video must be of a codec that can be decoded, got {str(path)!r}")
            stream.thread_type = "AUTO"
            yield container, stream
    except FFmpegError as error:
        raise InputError(
            f"video must be a file that FFmpeg can decode, got {str(path)!r} ({error.strerror})"
        ) from error


def _require(num_frames: int, rate: Fraction | None, path: str | Path) -> None:
    if not num_frames:
        raise InputError(f"video must hold at least one frame, got zero in {str(path)!r}")
    if not rate:
        raise InputError(f"video must state its frames per second, got none in {str(path)!r}")


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded frame as RGB, turned by the quarters that its video asks for."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters % 4 else pixels


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
                # x264's macroblock tree reads memory that nobody has written: one small video
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


def read_photo(path: str | Path) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes a photo upright (its EXIF turn applied) as RGB.

    What is transparent shows white behind it; 16-bit grey is scaled to 8 bits.

    Raises:
        InputError: the file is missing or is not a picture that can be decoded whole.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"photo must be an existing file, got {str(path)!r}")
    try:
        with Image.open(path) as image:
            return np.array(_opaque(ImageOps.exif_transpose(image)).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"photo must be a picture that can be decoded, got {str(path)!r} ({error})"
        ) from error


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would cut off what is above 255.
        grey = np.asarray(image, np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    canvas = Image.new("RGBA", image.size, (BACKGROUND,) * 4)
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas


def fit(
    frames: UInt8[np.ndarray, "t H W 3"], height: int, width: int
) -> UInt8[np.ndarray, "t h w 3"]:
    """Scales frames into `height x width` whole (letterbox), filling with the picture's border.

    The bars repeat the frame's mean edge colour so that a studio background goes on.
    """
    _, old_height, old_width, _ = frames.shape
    if (old_height, old_width) == (height, width):
        return frames
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
