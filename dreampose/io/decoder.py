"""Video decoding: constant rate, upright, square pixels, sRGB."""

import os
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from dreampose.errors import InputError, VideoWarning
from dreampose.io import formats, tone

MAX_FPS = 240.0
"""Frames per second at most that a variable rate is resampled to."""
MAX_REPEATED = 50
"""Frames given for each one in the file, at most, on average: time stamps with more are damaged."""

_MAX_THREADS = 4
"""Each thread of the decoder keeps a frame of its own."""
_MAX_PIXELS = 2**27
"""Of a frame: more is not decoded."""
_FORBIDDEN = ("hls", "dash", "concat", "concatf", "image2", "imf", "sdp", "webm_dash_manifest")
"""FFmpeg's formats that open other files."""
_STANDARD_RATES = (
    *(Fraction(rate * 1000, 1001) for rate in (24, 30, 60, 120)),
    *map(Fraction, (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 240)),
    Fraction(25, 2),
)

Frame = UInt8[np.ndarray, "H W 3"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """When frames are shown.

    fps: of the frames that are given. start, end: times in seconds from which the first and the
    last frame in the file are shown. num_frames: given. note: what is to be said of it.
    """

    fps: float
    start: float
    end: float
    num_frames: int
    note: str = ""


class VideoReader:
    """A video file as frames, decoded anew at every iteration, one in memory at a time.

    Frames come at a constant rate: where the file's is variable, they are repeated or dropped so
    that each is shown when the file shows it. They are turned and mirrored as the file asks, have
    square pixels, and the size of the first frame. HDR and wide gamut are converted to sRGB
    (`dreampose.io.tone`). An embedded cover picture is no video.

    Args:
        path: of the file.
        strict: refuse a file that is cut off, damaged, or whose frames change in size, instead of
            warning and giving what can be decoded.

    Attributes:
        source: the path.
        fps: frames per second, constant.
        height: of frames in pixels, as players show them.
        width: likewise.
        num_frames: frames by the file's time stamps; a damaged file gives fewer, and this number
            is right after the first iteration to the end.
        stated_frames: frames that the file states, more than `num_frames` where it is cut off.
        first_frame: number in the file of the first frame given.
        notes: what is unusual about the file, a sentence each; warned of once, at the end of the
            first iteration at the latest.

    Raises:
        InputError: the file is missing, is not a video that can be decoded, or holds no frame.
    """

    def __init__(self, path: str | Path, *, strict: bool = False) -> None:
        self.source = str(path)
        self.first_frame = 0
        self.notes: list[str] = []
        self._strict = strict
        self._start, self._stop = 0, -1
        self._warned: set[str] = set()
        with _opened(path) as (container, stream):
            times, stated = _packet_times(container, stream)
        self._stated = stated
        with _opened(path) as (container, stream):
            first = next((frame for _, frame in _decoded(container, stream, [])), None)
            if first is None:
                raise InputError(f"video: cannot decode any frame of {self.source!r}")
            self._timing = _timing(times, stream, self.source)
            self._shape = _Shape.of(first, stream)
        self.fps = self._timing.fps
        self.num_frames = self._timing.num_frames
        self.stated_frames = max(stated, self.num_frames)
        self.height, self.width = self._shape.shown
        if self._timing.note:
            self._tell(self._timing.note)
        if not tone.is_plain(first.color_trc, first.color_primaries):
            self.notes.append(f"{tone.name(first.color_trc)} is converted to sRGB")

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[Frame]:
        """Yields the frames in order.

        Warns:
            VideoWarning: the file is cut off, damaged, or its frames change in size.

        Raises:
            InputError: the same, where `strict`.
        """
        number = 0
        for number, frame in enumerate(self._resampled(self._picture), start=1):
            if number > self._start:
                yield frame
            if number == self._stop:
                return
        if number <= self._start:
            raise InputError(
                f"video: {self.source!r} ends after {number} frames, before frame {self._start}"
            )
        self.num_frames = number - self._start

    def between(self, start: int, stop: int) -> "VideoReader":
        """The frames `start` to `stop - 1` of the same file.

        Raises:
            InputError: the range is empty or reaches outside the video.
        """
        if not 0 <= start < stop <= self.num_frames:
            raise InputError(
                f"frames must be a range A:B with 0 <= A < B <= {self.num_frames}, "
                f"got {start}:{stop}"
            )
        part = object.__new__(VideoReader)
        part.__dict__.update(self.__dict__)
        part.first_frame = self.first_frame + start
        part._start, part._stop = self._start + start, self._start + stop
        part.num_frames = stop - start
        return part

    def count(self) -> int:
        """Number of the frames that iteration gives, by decoding the file without keeping any.

        Raises:
            InputError: as iteration.
        """
        if self._stop < 0:
            self.num_frames = sum(1 for _ in self._resampled(_size_of)) - self._start
        return self.num_frames

    def _resampled(self, convert: Callable[[av.VideoFrame, int], T]) -> Iterator[T]:
        """Every decoded frame as often as the constant rate asks for, from the first on.

        Args:
            convert: makes what is given of a decoded frame and its number in the file.
        """
        damage: list[str] = []
        pending: T | None = None
        given = decoded = 0
        last = 0.0
        with _opened(self.source) as (container, stream):
            for seconds, frame in _decoded(container, stream, damage):
                slot = given if seconds is None else self._slot(seconds)
                if pending is None:
                    # What comes before the first frame that can be decoded is not made up.
                    given = slot = max(0, slot)
                while pending is not None and given < slot:
                    yield pending
                    given += 1
                decoded += 1
                last = max(last, seconds or 0.0)
                pending = convert(frame, decoded)
        if pending is not None:
            yield pending
            given += 1
            # The last frame of a variable rate may be shown for long.
            while given < self._timing.num_frames and last >= self._timing.end:
                yield pending
                given += 1
        missing = self._stated - decoded
        if missing > 0:
            self._refuse_or_tell(
                f"{self.source!r} is cut off or damaged: {decoded} of its {self._stated} frames "
                "can be decoded"
            )
        elif damage:
            self._refuse_or_tell(f"{self.source!r} is damaged in {len(damage)} places")

    def _slot(self, seconds: float) -> int:
        return round((seconds - self._timing.start) * self.fps)

    def _picture(self, frame: av.VideoFrame, number: int) -> Frame:
        """A decoded frame as it is shown, at the size of the first."""
        try:
            return self._fitted(frame, number)
        except (FFmpegError, ValueError, MemoryError, cv2.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"video: cannot convert frame {number - 1} of {self.source!r} ({error})"
            ) from error

    def _fitted(self, frame: av.VideoFrame, number: int) -> Frame:
        shape = self._shape
        if (frame.width, frame.height) != shape.stored:
            height, width = self.height, self.width
            self._refuse_or_tell(
                f"frames of {self.source!r} change in size from {shape.stored[0]}x"
                f"{shape.stored[1]} to {frame.width}x{frame.height} at frame {number - 1}; they "
                f"are fitted into {width}x{height}",
                key="size",
            )
            other = _Shape(
                stored=(frame.width, frame.height),
                wide=max(1, round(frame.width * shape.wide / shape.stored[0])),
                orientation=shape.orientation,
            )
            return _letterbox(other.picture(frame), height, width)
        return shape.picture(frame)

    def _refuse_or_tell(self, message: str, key: str = "") -> None:
        if self._strict:
            raise InputError(f"video: {message}")
        self._tell(message, key)

    def _tell(self, message: str, key: str = "") -> None:
        if (key or message) in self._warned:
            return
        self._warned.add(key or message)
        self.notes.append(message)
        warnings.warn(f"video: {message}", VideoWarning, stacklevel=2)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """How a stored frame becomes what is shown.

    stored: width and height. wide: width with square pixels. orientation: the 2x2 part of the
    display matrix, columns and rows that are -1, 0 or 1.
    """

    stored: tuple[int, int]
    wide: int
    orientation: tuple[int, int, int, int]

    @classmethod
    def of(cls, frame: av.VideoFrame, stream: VideoStream) -> "_Shape":
        aspect: Fraction | None = stream.sample_aspect_ratio
        ratio = float(aspect) if aspect else 1.0
        return cls(
            stored=(frame.width, frame.height),
            wide=max(1, round(frame.width * ratio)) if 0.1 <= ratio <= 10 else frame.width,
            orientation=_orientation(frame),
        )

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of what is shown."""
        size = (self.stored[1], self.wide)
        return size if self.orientation[0] else (size[1], size[0])

    def picture(self, frame: av.VideoFrame) -> Frame:
        """The frame in sRGB, with square pixels, turned and mirrored."""
        transfer, primaries = frame.color_trc, frame.color_primaries
        if tone.is_plain(transfer, primaries):
            pixels: Any = frame.to_ndarray(format="rgb24")
        else:
            pixels = tone.to_srgb(frame.to_ndarray(format="rgb48le"), transfer, primaries)
        if self.wide != self.stored[0]:
            method = cv2.INTER_AREA if self.wide < self.stored[0] else cv2.INTER_CUBIC
            pixels = cv2.resize(pixels, (self.wide, self.stored[1]), interpolation=method)
        a, b, c, d = self.orientation
        if a == 0:
            pixels, a, d = pixels.transpose(1, 0, 2), c, b
        return np.ascontiguousarray(pixels[:: d or 1, :: a or 1])


def _size_of(frame: av.VideoFrame, number: int) -> tuple[int, int, int]:
    """What is kept of a frame that is only counted."""
    return number, frame.height, frame.width


def _orientation(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of x' = a x + c y, y' = b x + d y: the display matrix at the nearest quarter."""
    side_data: Any = frame.side_data
    data: Any = side_data.get(SideData.DISPLAYMATRIX)
    if data is None:
        return 1, 0, 0, 1
    values = np.frombuffer(bytes(data), np.int32)
    a, b, c, d = (float(values[at]) for at in (0, 1, 3, 4))
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def _letterbox(picture: Frame, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """A picture scaled whole into a size, on black."""
    scale = min(height / picture.shape[0], width / picture.shape[1])
    rows, columns = max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[top : top + rows, left : left + columns] = cv2.resize(
        picture, (columns, rows), interpolation=method
    )
    return canvas


@contextmanager
def _opened(path: str | Path) -> Generator[tuple[InputContainer, VideoStream]]:
    """A file and its first video stream that is no cover picture."""
    path = Path(path)
    try:
        if not path.is_file():
            raise InputError(f"video: no such file {str(path)!r}")
        with path.open("rb") as file:
            head = file.read(formats.HEAD_BYTES)
    except OSError as error:
        raise InputError(f"video: cannot read {str(path)!r} ({error.strerror})") from error
    if found := formats.describe(head):
        raise InputError(f"video: {str(path)!r} is {found}")
    kind = formats.sniff(head)
    if kind in formats.PICTURES and kind != "GIF":
        raise InputError(f"video: {str(path)!r} is a picture ({kind}), no video")
    container = _call(path, lambda: _open(path, kind))
    with container:
        yield container, _stream(container, path)


def _open(path: Path, kind: str) -> InputContainer:
    # Tags are not used, whatever their encoding is.
    options: dict[str, Any] = {"metadata_errors": "replace"}
    try:
        container = av.open(str(path), format=formats.FFMPEG_FORMAT.get(kind), **options)
    except FFmpegError:
        if kind not in formats.FFMPEG_FORMAT:
            raise
        # The first bytes may look like another kind by chance.
        container = av.open(str(path), **options)
    names = set(container.format.name.split(","))
    if names & set(_FORBIDDEN):
        container.close()
        raise InputError(f"video: {str(path)!r} is a playlist or a list of other files, no video")
    if any(name.endswith("_pipe") for name in names):
        container.close()
        raise InputError(f"video: {str(path)!r} is a picture, no video")
    return container


def _stream(container: InputContainer, path: Path) -> VideoStream:
    cover = Disposition.attached_pic
    found = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not found:
        what = "a cover picture and no video" if container.streams.video else "no video stream"
        raise InputError(f"video: {str(path)!r} holds {what}")
    stream = found[0]
    # PyAV's types do not say that it is missing where FFmpeg has no such decoder.
    decoder: Any = stream.codec_context
    if decoder is None:
        raise InputError(f"video: cannot decode the codec of {str(path)!r}; convert it to H.264")
    stream.thread_type = "AUTO"
    decoder.thread_count = min(_MAX_THREADS, os.cpu_count() or 1)
    decoder.options = {"max_pixels": str(_MAX_PIXELS)}
    return stream


def _call(path: str | Path, function: Any) -> Any:
    """Calls a function of the decoder; whatever it raises becomes a sentence about the file."""
    try:
        return function()
    except InputError:
        raise
    except FFmpegError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"video: cannot decode {str(path)!r} ({reason})") from error
    except Exception as error:
        raise InputError(
            f"video: cannot decode {str(path)!r} ({type(error).__name__}: {error})"
        ) from error


def _packet_times(
    container: InputContainer, stream: VideoStream
) -> tuple[Float[np.ndarray, "n 2"], int]:
    """Times and durations of the frames in seconds, by time, and how many frames are stated.

    Nothing is decoded. Times are NaN where packets have none.
    """
    rows: list[tuple[float, float]] = []
    discarded = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError, ValueError, OverflowError):
            break
        if not packet.size:
            # AVI repeats a frame so; the packet that ends the stream has no time.
            discarded += packet.pts is not None
            continue
        if packet.is_discard:
            discarded += 1
            continue
        stamp = packet.dts if packet.pts is None else packet.pts
        base = float(packet.time_base or 0)
        duration = float(packet.duration or 0) * base
        rows.append((np.nan if stamp is None else stamp * base, duration))
    times = np.array(rows, np.float64).reshape(-1, 2)
    if not np.isnan(times[:, 0]).any():
        times = _visible(times[np.argsort(times[:, 0], kind="stable")])
    stated = max(0, (stream.frames or 0) - discarded)
    return times, max(stated, _stated_by_length(container, stream, times))


def _visible(times: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Without packets that follow another at once: VP8 keeps frames that are not shown so."""
    steps = np.diff(times[:, 0], prepend=-np.inf)
    usual = float(np.median(steps[1:])) if len(steps) > 2 else 0.0
    return times[steps >= 0.2 * usual]


def _stated_by_length(
    container: InputContainer, stream: VideoStream, times: Float[np.ndarray, "n 2"]
) -> int:
    """Frames that the file's stated length asks for, where that is clearly more than there are."""
    length = container.duration
    if not len(times) or length is None or np.isnan(times[:, 0]).any() or len(times) < 2:
        return 0
    step = float(np.median(np.diff(times[:, 0])))
    if step <= 0 or stream.frames:
        return 0
    missing = (length / av.time_base - (times[-1, 0] - times[0, 0] + step)) / step
    # Sound may be longer than the picture.
    alone = all(other is stream or other.type != "audio" for other in container.streams)
    return len(times) + round(missing) if alone and missing > max(2, 0.02 * len(times)) else 0


def _timing(times: Float[np.ndarray, "n 2"], stream: VideoStream, source: str) -> _Timing:
    """The constant rate of a video, by the times of its frames.

    Raises:
        InputError: the file states neither times nor a rate, or its times are damaged.
    """
    stated = float(stream.average_rate or stream.guessed_rate or 0)
    stamps = times[:, 0]
    number = len(stamps)
    span = float(stamps[-1] - stamps[0]) if number else 0.0
    if number < 2 or np.isnan(stamps).any() or not np.isfinite(span) or span <= 0:
        if not stated:
            raise InputError(f"video: {source!r} states no frames per second")
        start = float(stamps[0]) if number and np.isfinite(stamps[0]) else 0.0
        return _Timing(fps=stated, start=start, end=np.inf, num_frames=max(1, number))
    measured = (number - 1) / span
    for rate in (stated, measured):
        if rate and _is_steady(stamps, rate):
            start, end = float(stamps[0]), float(stamps[-1])
            return _Timing(fps=rate, start=start, end=end, num_frames=number)
    steps = np.diff(stamps)
    rate = min(MAX_FPS, _nearest_rate(1 / float(np.median(steps[steps > 0]))))
    last = times[-1, 1] or 1 / rate
    slots = round(span * rate) + max(1, round(min(last, span) * rate))
    if slots > MAX_REPEATED * number + 100:
        raise InputError(
            f"video: {source!r} has damaged time stamps: {number} frames in {span:.0f} s with gaps "
            f"of up to {steps.max():.0f} s; cut or convert it"
        )
    note = (
        f"{source!r} has a variable frame rate (frames last {steps.min() * 1e3:.0f} to "
        f"{steps.max() * 1e3:.0f} ms); it is resampled to {rate:.5g} frames per second, "
        f"{number} frames become {slots}"
    )
    return _Timing(
        fps=rate, start=float(stamps[0]), end=float(stamps[-1]) - 1e-6, num_frames=slots, note=note
    )


def _is_steady(stamps: Float[np.ndarray, " n"], rate: float) -> bool:
    """Whether frame i is shown less than half a frame from i / rate, so that none is repeated."""
    away = (stamps - stamps[0]) * rate - np.arange(len(stamps))
    return bool(np.abs(away).max() < 0.49)


def _nearest_rate(rate: float) -> float:
    """A usual frame rate within 2%, or the rate itself."""
    nearest = min(_STANDARD_RATES, key=lambda usual: abs(float(usual) / rate - 1))
    return float(nearest) if abs(float(nearest) / rate - 1) < 0.02 else rate


def _decoded(
    container: InputContainer, stream: VideoStream, damage: list[str]
) -> Iterator[tuple[float | None, av.VideoFrame]]:
    """Frames in the order of showing with their times in seconds; damaged packets are passed over.

    Args:
        container: just opened.
        stream: of it.
        damage: what cannot be decoded is added here.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EndOfFileError):
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the file is damaged here
            damage.append(str(error))
            return
        try:
            frames = packet.decode()
        except Exception as error:  # noqa: BLE001
            damage.append(str(error))
            continue
        for frame in frames:
            seconds: Any = frame.time
            yield seconds, frame
