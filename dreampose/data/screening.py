"""Screening of training videos: statistics, limits, duplicates."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dreampose.errors import InputError
from dreampose.poses import Frames
from dreampose.poses.blazepose import LandmarkReader, Landmarks, PersonDetector
from dreampose.poses.landmarks import INDEX
from dreampose.poses.tracking import Follower

NUM_SAMPLES = 12
"""Number of evenly spaced frames in which persons are detected."""
NUM_HASHES = 4
"""Number of evenly spaced frames that are hashed."""

_HASH_SIDE = 16
"""Side of a hash; it has `_HASH_SIDE`² bits."""
_SMALL = 32
"""Side in pixels at which frames are compared to find cuts."""
_CUT = 0.08
"""Minimum mean absolute difference, in [0, 1], of two frames at a cut."""
_CUT_FACTOR = 5.0
"""Minimum ratio of that difference to the median difference of neighbouring frames."""
_AROUND = 6
"""Number of neighbouring differences on each side."""
_ENDS = ("nose", "left_ankle", "right_ankle")
"""Landmarks of a whole body, of which one ankle is enough."""


@dataclass(frozen=True, kw_only=True)
class VideoStatistics:
    """Statistics of one video.

    Attributes:
        height: of the frames in pixels.
        width: of the frames in pixels.
        num_frames: of the video.
        fps: frames per second.
        coverage: fraction of the sampled frames with a person.
        whole: fraction of the sampled frames with a person from head to foot.
        most_people: maximum number of persons in a sampled frame.
        cuts: indices of frames that begin another shot.
        hashes: perceptual hashes, in hexadecimal.
    """

    height: int
    width: int
    num_frames: int
    fps: float
    coverage: float
    whole: float
    most_people: int
    cuts: tuple[int, ...]
    hashes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.num_frames / self.fps

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "VideoStatistics":
        """Inverse of `dataclasses.asdict`; accepts lists in place of tuples."""
        plain: dict[str, Any] = dict(values)
        plain |= {name: tuple(values[name]) for name in ("cuts", "hashes")}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class ScreeningLimits:
    """Requirements for training videos.

    Attributes:
        smallest: minimum of the shorter side in pixels.
        shortest: minimum duration in seconds.
        most_people: maximum number of persons in a frame.
        coverage: minimum fraction of frames with a person, in [0, 1].
        whole: minimum fraction of frames with a person from head to foot, in [0, 1].
        most_cuts: maximum number of cuts.
        nearest: minimum fraction of hash bits in which two videos differ, in [0, 1]; 0 disables
            the check for duplicates.
    """

    smallest: int = 256
    shortest: float = 1.0
    most_people: int = 1
    coverage: float = 0.9
    whole: float = 0.5
    most_cuts: int = 0
    nearest: float = 0.1

    def __post_init__(self) -> None:
        for name in ("coverage", "whole", "nearest"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"{name} must be in [0, 1], got {value:g}")
        for name in ("smallest", "shortest", "most_people", "most_cuts"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"{name} must be at least 0, got {value:g}")


class Screener:
    """Computes statistics of videos, with BlazePose to detect persons."""

    def __init__(self, *, num_threads: int = 1) -> None:
        """Loads the networks."""
        self._follower = Follower(
            PersonDetector(threshold=0.3, num_threads=num_threads),
            LandmarkReader(num_threads=num_threads),
        )

    def __call__(self, clip: Frames) -> VideoStatistics:
        """Computes the statistics of a clip in one pass, with one frame in memory at a time."""
        sampled = set(_spaced_frames(len(clip), NUM_SAMPLES))
        hashed = set(_spaced_frames(len(clip), NUM_HASHES))
        found: list[list[Landmarks]] = []
        hashes: list[str] = []
        small: list[np.ndarray] = []
        for index, frame in enumerate(clip):
            small.append(cv2.resize(frame, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA))
            if index in sampled:
                found.append(self._follower.find(frame))
            if index in hashed:
                hashes.append(_to_text(perceptual_hash(frame)))
        whole = [bool(people) and _is_whole(people[0], clip.height, clip.width) for people in found]
        return VideoStatistics(
            height=clip.height,
            width=clip.width,
            num_frames=len(small),
            fps=float(clip.fps),
            coverage=sum(map(bool, found)) / len(found),
            whole=sum(whole) / len(found),
            most_people=max(map(len, found)),
            cuts=tuple(find_cuts(np.stack(small))),
            hashes=tuple(hashes),
        )


def find_cuts(frames: UInt8[np.ndarray, "t H W 3"]) -> list[int]:
    """Indices of frames that begin another shot.

    A cut is a large difference between consecutive frames, both absolutely and relative to the
    median difference of neighbouring frames.
    """
    if len(frames) < 2:
        return []
    small = np.stack(
        [cv2.resize(frame, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA) for frame in frames]
    ).astype(np.float32)
    changes = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)) / 255
    cuts: list[int] = []
    for index in np.flatnonzero(changes > _CUT).tolist():
        around = np.delete(
            changes[max(0, index - _AROUND) : index + _AROUND + 1], min(index, _AROUND)
        )
        usual = float(np.median(around)) if len(around) else 0.0
        if changes[index] > _CUT_FACTOR * usual:
            cuts.append(index + 1)
    return cuts


def perceptual_hash(picture: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, " 256"]:
    """Perceptual hash (pHash) of 256 bits: lowest DCT coefficients compared with their median.

    It hardly changes when an image is resized, recompressed or brightened.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    side = 4 * _HASH_SIDE
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small))[:_HASH_SIDE, :_HASH_SIDE].ravel()
    # The first coefficient is the mean brightness, which does not depend on the contents.
    return low > np.median(low[1:])


def rejection_reasons(
    statistics: Mapping[str, VideoStatistics], limits: ScreeningLimits
) -> dict[str, list[str]]:
    """Reasons to reject each video; an empty list for videos to keep.

    Of duplicates, the one with the most pixels is kept, then the longest, then the first by name.
    Videos rejected for another reason are not compared with.

    Args:
        statistics: of every video, by name.
        limits: requirements.
    """
    reasons = {name: _violations(values, limits) for name, values in statistics.items()}
    good = [name for name in statistics if not reasons[name]]
    good.sort(
        key=lambda name: (
            -statistics[name].height * statistics[name].width,
            -statistics[name].seconds,
            name,
        )
    )
    kept: list[str] = []
    bits: list[Float[np.ndarray, "h 256"]] = []
    for name in good:
        own = _from_text(statistics[name].hashes)
        distances = [float(np.abs(own - other).mean()) for other in bits]
        nearest = int(np.argmin(distances)) if distances else 0
        if distances and distances[nearest] < limits.nearest:
            reasons[name].append(f"duplicate of {kept[nearest]}")
        else:
            kept.append(name)
            bits.append(own)
    return reasons


def _violations(values: VideoStatistics, limits: ScreeningLimits) -> list[str]:
    shorter = min(values.height, values.width)
    violations = {
        f"resolution: {shorter} pixels, not {limits.smallest}": shorter < limits.smallest,
        f"length: {values.seconds:.2f} s, not {limits.shortest:g} s": (
            values.seconds < limits.shortest
        ),
        f"people: {values.most_people} in one frame, not {limits.most_people}": (
            values.most_people > limits.most_people
        ),
        f"pose coverage: a person in {values.coverage:.0%} of the frames, "
        f"not {limits.coverage:.0%}": values.coverage < limits.coverage,
        f"whole body: in {values.whole:.0%} of the frames, not {limits.whole:.0%}": (
            values.whole < limits.whole
        ),
        f"cuts: {len(values.cuts)}, at frame {', '.join(map(str, values.cuts))}": (
            len(values.cuts) > limits.most_cuts
        ),
    }
    return [text for text, is_violated in violations.items() if is_violated]


def _spaced_frames(num_frames: int, count: int) -> list[int]:
    """Indices of at most `count` frames, each in the middle of an equal part of the video."""
    at = (np.arange(count) + 0.5) * num_frames / count
    return sorted({math.floor(place) for place in at.tolist()})


def _is_whole(person: Landmarks, height: int, width: int) -> bool:
    """Whether head and at least one foot are inside the frame."""
    places = {name: person.joints[INDEX[name], :2] for name in _ENDS}
    inside = {name: bool(0 <= x < width and 0 <= y < height) for name, (x, y) in places.items()}
    return inside["nose"] and (inside["left_ankle"] or inside["right_ankle"])


def _to_text(bits: Bool[np.ndarray, " 256"]) -> str:
    return np.packbits(bits).tobytes().hex()


def _from_text(texts: tuple[str, ...]) -> Float[np.ndarray, "h 256"]:
    """Converts hashes to bits; the last is repeated for videos with fewer than `NUM_HASHES`."""
    rows = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in texts]
    rows += [rows[-1]] * (NUM_HASHES - len(rows))
    return np.stack(rows).astype(np.float32)
