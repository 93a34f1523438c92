"""Import of pose tracks: arrays, IUV pictures and videos, OpenPose JSON."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from warnings import warn

import numpy as np
from jaxtyping import Float, UInt8

from dreampose.errors import InputError, PartsOnlyWarning
from dreampose.io import video
from dreampose.poses import openpose, parts
from dreampose.poses.estimators import Track
from dreampose.poses.placement import Placement
from dreampose.types import Clip

FORMS = ("npy", "iuv", "openpose")
"""Forms that `read` accepts."""

_BLANK = 235
"""Grey level of the blank frames of tracks that come without a video."""
_OVERSHOOT = 0.5
"""U and V may leave [0, 1] by this much: the networks' own values are not bounded."""
_PAINTED_SHARE = 0.3
"""Share of the body's pixels whose blue is no part's number, in a painted picture."""
_TOLERANCE = 12
"""8-bit levels by which compression may change the background's colour."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A track, and the clip that it belongs to: its own frames, or blank ones of its size."""

    track: Track
    clip: Clip

    def cut(self, start: int, stop: int) -> "Imported":
        """The frames `start` to `stop - 1`.

        Raises:
            InputError: the range is empty or reaches outside the track.
        """
        if not 0 <= start < stop <= len(self.clip.frames):
            raise InputError(
                f"frames must be a range A:B with 0 <= A < B <= {len(self.clip.frames)}, "
                f"got {start}:{stop}"
            )
        kept, track = slice(start, stop), self.track
        return Imported(
            track=replace(
                track,
                maps=None if track.maps is None else track.maps[kept],
                joints=track.joints[kept],
                confidence=track.confidence[kept],
                found=track.found[kept],
            ),
            clip=replace(self.clip, frames=self.clip.frames[kept], first_frame=start),
        )


def read(
    source: str | Path,
    form: str,
    *,
    height: int,
    width: int,
    fps: float | None = None,
    channels: int = 2,
    canvas: tuple[int, int] | None = None,
    person: tuple[float, float] | None = None,
) -> Imported:
    """Reads a track made elsewhere.

    Args:
        source: a folder with a file for each frame, in the order of the number in their names
            that changes (a number left out is a frame without a pose); for 'iuv' also a video,
            for 'openpose' also one file with a list of frames.
        form: 'npy' are arrays (2, H, W) of U and V as the published tool writes them, or
            (3, H, W) of part, U and V; 'iuv' are pictures with part, U and V in blue, green and
            red, or pictures painted with the parts' colours as MagicAnimate takes them;
            'openpose' is OpenPose's or DWPose's JSON.
        height: of the maps in pixels; the source is placed in them as `video.fit` does.
        width: of the maps in pixels.
        fps: frames per second; of a video its own.
        channels: of the maps, 2 or 3.
        canvas: height and width of the pictures that points belong to, where the JSON has none.
        person: pixel x, y of the person where there are several; else the largest is followed.

    Raises:
        InputError: nothing is there, or it is not of that form.
    """
    if form not in FORMS:
        raise InputError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
    if channels not in (2, 3):
        raise InputError(f"channels must be 2 or 3, got {channels}")
    source = Path(source)
    is_video = form == "iuv" and source.is_file()
    if is_video == (fps is not None) or (fps is not None and not fps > 0):
        expected = "left to the video" if is_video else "a positive number"
        raise InputError(f"fps must be {expected}, got {fps if fps is None else f'{fps:g}'}")
    size = (height, width)
    if form == "npy":
        return _read_arrays(source, size, fps or 0, channels)
    if form == "iuv":
        return _read_iuv(source, size, fps or 0, channels)
    if channels != 2:
        raise InputError(f"channels must be 2 for maps painted from points, got {channels}")
    files = [source] if source.is_file() else _numbered(source, ".json")
    track, canvas = openpose.read(files, size=size, canvas=canvas, person=person)
    frames = _blank(len(track.found), canvas)
    return Imported(track=track, clip=Clip(frames=frames, fps=fps or 0, source=str(source)))


def _numbered(folder: Path, suffix: str) -> list[Path | None]:
    """Files of a folder by the number in their names that changes; None where one is left out.

    Names may hold other numbers, such as a size. Hidden files (a dot first) are skipped. Where the
    numbers keep a distance (0, 2, 4 …), that distance is one frame.
    """
    if not folder.is_dir():
        raise InputError(f"poses must be an existing folder, got {str(folder)!r}")
    paths = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == suffix and not path.name.startswith(".")
    ]
    if not paths:
        raise InputError(f"poses must be {suffix} files, got none in {str(folder)!r}")
    files: dict[int, Path] = {}
    for number, path in zip(_frame_numbers(paths, folder), paths, strict=True):
        if number in files:
            raise InputError(
                f"poses must be one file a frame, got {files[number].name!r} and "
                f"{path.name!r} in {str(folder)!r}"
            )
        files[number] = path
    first, last = min(files), max(files)
    step = math.gcd(*(number - first for number in files)) or 1
    if (last - first) // step > 100 * len(files):
        raise InputError(
            f"poses must be numbered by frame, got {len(files)} files from {first} to {last} "
            f"in {str(folder)!r}"
        )
    return [files.get(number) for number in range(first, last + 1, step)]


def _frame_numbers(paths: Sequence[Path], folder: Path) -> list[int]:
    """The frame's number in each name: the last one of those that change from name to name."""
    numbers = [[int(text) for text in re.findall(r"\d+", path.stem)] for path in paths]
    for path, found in zip(paths, numbers, strict=True):
        if not found:
            raise InputError(
                f"poses must have the frame's number in their names, got {path.name!r} "
                f"in {str(folder)!r}"
            )
    if len({len(found) for found in numbers}) == 1:
        changing = [i for i, values in enumerate(zip(*numbers, strict=True)) if len({*values}) > 1]
        if changing:
            return [found[changing[-1]] for found in numbers]
    return [found[-1] for found in numbers]


class _Maps:
    """Collects the maps of a track, frame by frame, at their final size."""

    def __init__(self, num_frames: int, size: tuple[int, int], channels: int) -> None:
        self._maps = np.zeros((num_frames, channels, *size), np.float32)
        self._joints = np.zeros((num_frames, parts.NUM_PARTS, 4), np.float32)
        self._size = size
        self.canvas: tuple[int, int] | None = None

    def put(
        self,
        index: int,
        maps: Float[np.ndarray, "u H W"],
        labels: UInt8[np.ndarray, "H W"],
        name: str,
    ) -> None:
        """Places one frame's maps; its labels are 1 on the whole body where no parts are known."""
        if self.canvas is None:
            self.canvas = (maps.shape[1], maps.shape[2])
        if maps.shape[1:] != self.canvas:
            raise InputError(
                f"poses must all be of one size, got {self.canvas[0]}x{self.canvas[1]} and "
                f"{maps.shape[1]}x{maps.shape[2]} in {name!r}"
            )
        placement = Placement.fit(self.canvas, self._size)
        self._maps[index] = placement.warp(maps[None], self._size)[0]
        self._joints[index] = placement.move(parts.middles(labels))

    def imported(self, clip: Clip, *, has_parts: bool) -> Imported:
        """The track; its joints are the parts' middles, or the body's where there are no parts."""
        found: np.ndarray = np.any(self._maps, axis=(1, 2, 3))
        track = Track(
            maps=self._maps,
            joints=self._joints if has_parts else self._joints[:, :1],
            confidence=found.astype(np.float32),
            found=found,
            joint_names=parts.NAMES if has_parts else ("body",),
        )
        return Imported(track=track, clip=clip)


def _blank(num_frames: int, canvas: tuple[int, int]) -> UInt8[np.ndarray, "t H W 3"]:
    return np.broadcast_to(np.full((1, 1, 1, 3), _BLANK, np.uint8), (num_frames, *canvas, 3))


def _read_arrays(folder: Path, size: tuple[int, int], fps: float, channels: int) -> Imported:
    files = _numbered(folder, ".npy")
    collected = _Maps(len(files), size, channels)
    has_parts = False
    for index, path in enumerate(files):
        if path is None:
            continue
        labels, uv = _split_array(_load(path), path)
        if labels is None and channels == 3:
            raise InputError(
                "channels must be 2 for arrays of U and V, which hold no parts, "
                f"got 3 for {str(path)!r}"
            )
        has_parts = labels is not None
        if labels is None:
            labels = (uv != 0).any(axis=0).astype(np.uint8)
        maps = parts.to_maps(labels[None], uv[None], channels)[0]
        collected.put(index, maps, labels, str(path))
    assert collected.canvas is not None
    clip = Clip(frames=_blank(len(files), collected.canvas), fps=fps, source=str(folder))
    return collected.imported(clip, has_parts=has_parts)


def _load(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"poses must be plain .npy arrays, got {str(path)!r} ({error})") from error
    if (
        not isinstance(values, np.ndarray)
        or values.ndim != 3
        or values.shape[0] not in (2, 3)
        or values.dtype.kind not in "fiu"
    ):
        shape = getattr(values, "shape", "several arrays")
        raise InputError(
            f"poses must be numbers of shape (2, height, width) or (3, height, width), "
            f"got {shape} in {str(path)!r}"
        )
    return values


def _split_array(
    values: np.ndarray, path: Path
) -> tuple[UInt8[np.ndarray, "H W"] | None, Float[np.ndarray, "2 H W"]]:
    """Parts, where there are any, and U and V in [0, 1]; 8-bit U and V are over 255."""
    scale = 255 if values.dtype == np.uint8 else 1
    uv = values[-2:].astype(np.float32) / scale
    if not np.isfinite(uv).all() or uv.min() < -_OVERSHOOT or uv.max() > 1 + _OVERSHOOT:
        raise InputError(
            f"poses must hold U and V in [0, 1] (8-bit ones in 0 to 255), "
            f"got {uv.min():g} to {uv.max():g} in {str(path)!r}"
        )
    if len(values) == 2:
        return None, uv
    labels = np.round(values[0])
    if labels.min() < 0 or labels.max() > parts.NUM_PARTS:
        raise InputError(
            f"poses must hold parts 0 to {parts.NUM_PARTS} first, "
            f"got {labels.min():g} to {labels.max():g} in {str(path)!r}"
        )
    return labels.astype(np.uint8), uv


def _read_iuv(source: Path, size: tuple[int, int], fps: float, channels: int) -> Imported:
    if source.is_dir():
        files = _numbered(source, ".png")
        pictures = [None if path is None else video.read_photo(path) for path in files]
        first = next(picture for picture in pictures if picture is not None)
        frames = _blank(len(pictures), first.shape[:2])
    else:
        clip = video.read(source)
        frames, fps = clip.frames, clip.fps
        pictures = list(frames)
        first = pictures[0]
    painted = _is_painted(first, source)
    collected = _Maps(len(pictures), size, channels)
    for index, picture in enumerate(pictures):
        if picture is None:
            continue
        if painted:
            labels = parts.from_colours(picture)
            uv = np.full((2, *labels.shape), 0.5, np.float32)
        else:
            labels, uv = _split_array(np.moveaxis(picture[..., ::-1], -1, 0), source)
            assert labels is not None
        maps = parts.to_maps(labels[None], uv[None], channels)[0]
        collected.put(index, maps, labels, f"frame {index} of {source}")
    if painted:
        warn(
            f"{source} shows the parts of the body but not U and V on them, which are set to 0.5",
            PartsOnlyWarning,
            stacklevel=3,
        )
    clip = Clip(frames=frames, fps=fps, source=str(source))
    return collected.imported(clip, has_parts=True)


def _is_painted(picture: UInt8[np.ndarray, "H W 3"], source: Path) -> bool:
    """Whether a picture is painted with the colours of the parts.

    Its background is then the colour of part 0, or black, or there are black bars at the sides;
    Part, U and V on black differ in the blue channel, which holds parts 0 to 24 there.
    """
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    background = np.median(border, axis=0)
    if np.abs(background - parts.palette()[0]).max() <= _TOLERANCE:
        return True
    if background.max() <= _TOLERANCE:
        shown = picture[picture.max(axis=-1) > 2 * _TOLERANCE]
        blue = shown[:, 2] > parts.NUM_PARTS + _TOLERANCE
        return bool(len(shown)) and float(blue.mean()) > _PAINTED_SHARE
    colour = ", ".join(f"{level:.0f}" for level in background)
    raise InputError(
        "poses must have the background 0, 0, 0 (part, U and V as blue, green and red, or parts "
        f"painted with viridis) or 68, 1, 84 (viridis), got {colour} in {str(source)!r}"
    )
