"""Whether a video is good enough to train on: what is measured, and what is asked of it.

Knows nothing of files, training or Ray. Measuring looks at the picture alone; judging needs all
videos' measures, because a duplicate is one only beside its original.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dreampose.errors import InputError
from dreampose.poses.blazepose import LandmarkReader, Landmarks, PersonDetector
from dreampose.poses.landmarks import INDEX
from dreampose.poses.tracking import Follower
from dreampose.types import Clip

NUM_SAMPLES = 12
"""Frames, evenly spread, in which people are looked for."""
NUM_HASHES = 4
"""Frames, evenly spread, whose hashes stand for the video."""

_HASH_SIDE = 16
"""A hash has this many bits to the power of two."""
_SMALL = 32
"""Side in pixels at which frames are compared for cuts."""
_CUT = 0.08
"""Mean absolute difference of two frames in [0, 1] from which it may be a cut …"""
_CUT_FACTOR = 5.0
"""… if it is this many times that of the frames around."""
_AROUND = 6
_ENDS = ("nose", "left_ankle", "right_ankle")
"""Points that a whole body shows, one of the ankles being enough."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What was measured of one video.

    height, width: of the frames in pixels. fps: frames per second. coverage: share of the frames
    looked at that show somebody; whole: that show a person from head to foot. most_people: in one
    of these frames. cuts: frames that begin another shot. hashes: bits of the perceptual hashes.
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
        """Length of the video."""
        return self.num_frames / self.fps

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measures":
        """Inverse of `dataclasses.asdict`, also after JSON."""
        plain: dict[str, Any] = dict(values)
        plain |= {name: tuple(values[name]) for name in ("cuts", "hashes")}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is asked of a video.

    smallest: of the shorter side, in pixels. shortest: in seconds. most_people: in one frame.
    coverage, whole: least shares of frames with a person, and with one from head to foot.
    most_cuts: at the most. nearest: share of bits in which two videos must differ, in [0, 1]; 0
    lets everything through.
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
    """Measures videos with BlazePose's networks."""

    def __init__(self, *, num_threads: int = 1) -> None:
        """Loads the networks."""
        self._follower = Follower(
            PersonDetector(threshold=0.3, num_threads=num_threads),
            LandmarkReader(num_threads=num_threads),
        )

    def __call__(self, clip: Clip) -> Measures:
        """What can be told of a clip without its neighbours."""
        num_frames, height, width = clip.frames.shape[:3]
        found = [self._follower.find(clip.frames[i]) for i in _spread(num_frames, NUM_SAMPLES)]
        whole = [bool(people) and _is_whole(people[0], height, width) for people in found]
        return Measures(
            height=height,
            width=width,
            num_frames=num_frames,
            fps=float(clip.fps),
            coverage=sum(map(bool, found)) / len(found),
            whole=sum(whole) / len(found),
            most_people=max(map(len, found)),
            cuts=tuple(find_cuts(clip.frames)),
            hashes=tuple(
                _to_text(perceptual_hash(clip.frames[i])) for i in _spread(num_frames, NUM_HASHES)
            ),
        )


def find_cuts(frames: UInt8[np.ndarray, "t H W 3"]) -> list[int]:
    """Frames that begin another shot: unlike the one before, where the others nearby are alike."""
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
    """Signs of a picture's lowest cosine coefficients against their median (pHash, 256 bits).

    Nearly the same for a picture that is scaled, compressed again or brightened.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    side = 4 * _HASH_SIDE
    small = cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(small))[:_HASH_SIDE, :_HASH_SIDE].ravel()
    # The first is the mean brightness, which says nothing of what is shown.
    return low > np.median(low[1:])


def judge(measures: Mapping[str, Measures], limits: Limits) -> dict[str, list[str]]:
    """Why each video is to be dropped; no reasons where it is to be kept.

    Of videos that are nearly the same the one with the most pixels is kept, of equals the longest,
    then the first by name. Videos dropped for another reason are nobody's originals.

    Args:
        measures: of every video, by name.
        limits: what is asked of them.
    """
    reasons = {name: _faults(values, limits) for name, values in measures.items()}
    good = [name for name in measures if not reasons[name]]
    good.sort(
        key=lambda name: (
            -measures[name].height * measures[name].width,
            -measures[name].seconds,
            name,
        )
    )
    kept: list[str] = []
    bits: list[Float[np.ndarray, "h 256"]] = []
    for name in good:
        own = _from_text(measures[name].hashes)
        distances = [float(np.abs(own - other).mean()) for other in bits]
        nearest = int(np.argmin(distances)) if distances else 0
        if distances and distances[nearest] < limits.nearest:
            reasons[name].append(f"duplicate of {kept[nearest]}")
        else:
            kept.append(name)
            bits.append(own)
    return reasons


def _faults(values: Measures, limits: Limits) -> list[str]:
    shorter = min(values.height, values.width)
    faults = {
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
    return [text for text, wrong in faults.items() if wrong]


def _spread(num_frames: int, count: int) -> list[int]:
    """At most `count` frames, each in the middle of an equal part of the video."""
    at = (np.arange(count) + 0.5) * num_frames / count
    return sorted({math.floor(place) for place in at.tolist()})


def _is_whole(person: Landmarks, height: int, width: int) -> bool:
    """Whether head and a foot lie in the picture."""
    places = {name: person.joints[INDEX[name], :2] for name in _ENDS}
    inside = {name: bool(0 <= x < width and 0 <= y < height) for name, (x, y) in places.items()}
    return inside["nose"] and (inside["left_ankle"] or inside["right_ankle"])


def _to_text(bits: Bool[np.ndarray, " 256"]) -> str:
    return np.packbits(bits).tobytes().hex()


def _from_text(texts: tuple[str, ...]) -> Float[np.ndarray, "h 256"]:
    """Bits of hashes; one video may have fewer where it has few frames: the last is repeated."""
    rows = [np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in texts]
    rows += [rows[-1]] * (NUM_HASHES - len(rows))
    return np.stack(rows).astype(np.float32)
