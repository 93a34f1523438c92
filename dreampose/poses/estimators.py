"""What a pose estimator is, and the choice of one by name. Knows nothing of motion files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from warnings import warn

import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import InputError, SeveralPeopleWarning
from dreampose.poses.blazepose import LandmarkReader, PersonDetector
from dreampose.poses.exact import read_ground_truth
from dreampose.poses.landmarks import NAMES, point
from dreampose.poses.placement import Placement
from dreampose.poses.tracking import Follower
from dreampose.types import Clip

Progress = Callable[[int], object]
"""Called with the number of frames done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """What an estimator saw, before gaps are filled.

    maps: None where they are to be painted from the joints. joints: in pixels of the maps.
    found: whether the person was seen in the frame; maps and joints elsewhere mean nothing.
    """

    maps: Float[np.ndarray, "t 2 H W"] | None
    joints: Float[np.ndarray, "t k 4"]
    confidence: Float[np.ndarray, " t"]
    found: Bool[np.ndarray, " t"]
    joint_names: tuple[str, ...] = ()


@runtime_checkable
class PoseEstimator(Protocol):
    """Frames to pose maps, joints and a confidence per frame."""

    name: str

    def __call__(
        self, clip: Clip, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Estimates the poses of one person as maps of `height x width`.

        The clip's frames are placed into the maps as `video.fit` places them.
        """
        ...


@dataclass(kw_only=True)
class BlazePose:
    """Poses of a real or rendered person, read by BlazePose from the picture alone.

    Of several people the largest at first is followed (of equals the most central), or the one
    nearest to `person`. Deterministic for one number of threads.

    Attributes:
        detection_threshold: score in [0, 1] from which a person counts as found.
        num_threads: threads of each network.
        person: x and y, in pixels of the clip, of the person's hips where the track begins.
    """

    detection_threshold: float = 0.3
    num_threads: int = 1
    person: tuple[float, float] | None = None
    name: str = field(default="blazepose", init=False)
    _follower: Follower | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded networks, which cannot be pickled and are quickly loaded again."""
        return {**self.__dict__, "_follower": None}

    def __call__(
        self, clip: Clip, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Estimates at the clip's own resolution; maps are left to be painted."""
        if self._follower is None:
            self._follower = Follower(
                PersonDetector(threshold=self.detection_threshold, num_threads=self.num_threads),
                LandmarkReader(num_threads=self.num_threads),
            )
        num_frames = len(clip.frames)
        joints = np.zeros((num_frames, len(NAMES), 4), np.float32)
        confidence = np.zeros(num_frames, np.float32)
        found = np.zeros(num_frames, bool)
        crowded: tuple[int, int] | None = None
        sightings = self._follower.follow(
            clip.frames, search_every=max(1, round(clip.fps)), near=self.person
        )
        for index, sighting in enumerate(sightings):
            if crowded is None and (sighting.num_people or 0) > 1:
                crowded = index, sighting.num_people or 0
            if sighting.landmarks is not None:
                joints[index] = sighting.landmarks.joints
                visibility = float(joints[index, :, 3].mean())
                confidence[index] = max(sighting.landmarks.presence * visibility, 1e-3)
                found[index] = True
            if progress is not None:
                progress(1)
        if crowded is not None and found.any():
            rule = "the largest" if self.person is None else "the nearest to the place given"
            _warn_crowd(clip, crowded[1], crowded[0], rule, joints, found)
        placement = Placement.fit(clip.frames.shape[1:3], (height, width))
        return Track(
            maps=None,
            joints=placement.move(joints),
            confidence=confidence,
            found=found,
            joint_names=NAMES,
        )


def _warn_crowd(
    clip: Clip,
    num_people: int,
    index: int,
    rule: str,
    joints: Float[np.ndarray, "t 33 4"],
    found: Bool[np.ndarray, " t"],
) -> None:
    first = int(np.flatnonzero(found)[0])
    x, y = point(joints[first], "middle_hip")[:2]
    count = {2: "two"}.get(num_people, str(num_people))
    warn(
        f"{count} people are in frame {clip.first_frame + index} of {clip.source or 'the clip'}; "
        f"following the one at x={x:.0f}, y={y:.0f} in frame {clip.first_frame + first} "
        f"({rule})",
        SeveralPeopleWarning,
        stacklevel=4,
    )


@dataclass(kw_only=True)
class CatwalkPose:
    """The exact maps and joints that the catwalk's renderer wrote beside its video."""

    name: str = field(default="catwalk", init=False)

    def __call__(
        self, clip: Clip, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Reads `NAME.npz` beside `clip.source`, `NAME.mp4`.

        Raises:
            InputError: the clip has no ground truth, or one of another length or size.
        """
        truth = read_ground_truth(clip)
        placement = Placement.fit(clip.frames.shape[1:3], (height, width))
        maps = placement.warp(truth.maps, (height, width))
        found: np.ndarray = np.any(maps > 0, axis=(1, 2, 3))
        if progress is not None:
            progress(len(maps))
        return Track(
            maps=maps,
            joints=placement.move(truth.joints),
            confidence=found.astype(np.float32),
            found=found,
            joint_names=NAMES,
        )


_ESTIMATORS: dict[str, Callable[..., PoseEstimator]] = {
    "blazepose": BlazePose,
    "catwalk": CatwalkPose,
}

ESTIMATORS = tuple(_ESTIMATORS)
"""Names that `estimator` knows."""


def estimator(name: str, **options: Any) -> PoseEstimator:
    """The estimator of that name; options are those of its class.

    Raises:
        InputError: no estimator has that name.
    """
    if name not in _ESTIMATORS:
        raise InputError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")
    return _ESTIMATORS[name](**options)
