"""Pose estimators: protocol, implementations and choice by name."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from warnings import warn

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16

from dreampose.errors import InputError, SeveralPeopleWarning
from dreampose.io.files import open_arrays
from dreampose.poses import parts
from dreampose.poses.blazepose import LandmarkReader, PersonDetector
from dreampose.poses.densepose import SurfaceReader, surface
from dreampose.poses.landmarks import NAMES, point
from dreampose.poses.placement import Placement
from dreampose.poses.tracking import BoxFollower, Follower, hips_of

Progress = Callable[[int], object]
"""Called with the number of frames done since the last call."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """Output of an estimator, before gaps are filled.

    maps: None where they are to be painted from the joints. joints: in pixels of the maps.
    found: frames that show the person; maps and joints of other frames are undefined.
    cuts: frames that begin another shot; a track does not continue across them.
    colours: Lab colours of the left and right of head, arms and legs, NaN where not seen.
    picture: left, top, right and bottom of the video's frames in the maps, in pixels.
    """

    maps: Float[np.ndarray, "t u H W"] | None
    joints: Float[np.ndarray, "t k 4"]
    confidence: Float[np.ndarray, " t"]
    found: Bool[np.ndarray, " t"]
    joint_names: tuple[str, ...] = ()
    places: UInt16[np.ndarray, "t 2 H W"] | None = None
    """U and V times 65535, where `maps` is rounded more coarsely."""
    cuts: tuple[int, ...] = ()
    colours: Float[np.ndarray, "t 3 2 3"] | None = None
    picture: tuple[float, float, float, float] | None = None


@runtime_checkable
class Frames(Protocol):
    """Frames of a video in order: a `Clip`, or a `VideoReader` that decodes them one by one."""

    @property
    def fps(self) -> float:
        """Frames per second."""
        ...

    @property
    def source(self) -> str:
        """Where the frames come from."""
        ...

    @property
    def first_frame(self) -> int:
        """Number of the first frame in the source."""
        ...

    @property
    def height(self) -> int:
        """Height of the frames in pixels."""
        ...

    @property
    def width(self) -> int:
        """Width of the frames in pixels."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]: ...

    def between(self, start: int, stop: int) -> "Frames":
        """The frames `start` to `stop - 1`."""
        ...


@runtime_checkable
class PoseEstimator(Protocol):
    """Frames to pose maps, joints and a confidence per frame."""

    name: str

    def __call__(
        self, clip: Frames, *, height: int, width: int, progress: Progress | None = None
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
        channels: of the maps; painted ones have 2.
    """

    detection_threshold: float = 0.3
    num_threads: int = 1
    person: tuple[float, float] | None = None
    channels: int = 2
    name: str = field(default="blazepose", init=False)
    _follower: Follower | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.channels != 2:
            raise InputError(
                f"estimator must be densepose or catwalk for maps of {self.channels} channels, "
                "got blazepose, whose maps have 2"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded networks, which cannot be pickled and are quickly loaded again."""
        return {**self.__dict__, "_follower": None}

    def find(self, picture: UInt8[np.ndarray, "H W 3"]) -> list[tuple[float, float]]:
        """Hips (x, y) of every person in a picture, largest first."""
        people = self._networks().find(picture)
        return [(float(x), float(y)) for x, y in (hips_of(landmarks) for landmarks in people)]

    def _networks(self) -> Follower:
        if self._follower is None:
            self._follower = Follower(
                PersonDetector(threshold=self.detection_threshold, num_threads=self.num_threads),
                LandmarkReader(num_threads=self.num_threads),
            )
        return self._follower

    def __call__(
        self, clip: Frames, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Estimates at the clip's own resolution; maps are left to be painted."""
        followed = self._networks().follow(
            clip, fps=clip.fps, num_frames=len(clip), near=self.person, progress=progress
        )
        num_frames = followed.num_frames
        joints = np.zeros((num_frames, len(NAMES), 4), np.float32)
        confidence = np.zeros(num_frames, np.float32)
        found = np.zeros(num_frames, bool)
        colours = np.full((num_frames, 3, 2, 3), np.nan, np.float32)
        for index, sighting in followed.sightings.items():
            joints[index] = sighting.landmarks.joints
            visibility = float(joints[index, :, 3].mean())
            confidence[index] = max(sighting.landmarks.presence * visibility, 1e-3)
            colours[index] = sighting.appearance.sides
            found[index] = True
        crowds = [(index, number) for index, number in followed.num_people.items() if number > 1]
        if crowds and found.any():
            rule = "the largest" if self.person is None else "the nearest to the place given"
            first = int(np.flatnonzero(found)[0])
            hips = point(joints[first], "middle_hip")[:2]
            index, number = crowds[0]
            _warn_crowd(clip, number, index, rule, hips, first)
        placement = Placement.fit((clip.height, clip.width), (height, width))
        corners = np.array([[0, 0, 0, 0], [clip.width, clip.height, 0, 0]], np.float32)
        (left, top), (right, bottom) = placement.move(corners)[:, :2].tolist()
        return Track(
            maps=None,
            joints=placement.move(joints),
            confidence=confidence,
            found=found,
            joint_names=NAMES,
            cuts=followed.cuts,
            colours=colours,
            picture=(left, top, right, bottom),
        )


def _warn_crowd(
    clip: Frames,
    num_people: int,
    index: int,
    rule: str,
    place: Float[np.ndarray, "2"],
    first: int,
) -> None:
    x, y = place
    count = {2: "two"}.get(num_people, str(num_people))
    warn(
        f"{count} people are in frame {clip.first_frame + index} of {clip.source or 'the clip'}; "
        f"following the one at x={x:.0f}, y={y:.0f} in frame {clip.first_frame + first} "
        f"({rule})",
        SeveralPeopleWarning,
        stacklevel=4,
    )


@dataclass(kw_only=True)
class DensePose:
    """U and V of the body's surface, read by a DensePose model that the user provides.

    Of several people the largest at first is followed, or the one nearest to `person`; the others
    are left out of the maps. The joints are the middles of the 24 parts.

    Attributes:
        model: file of an exported TorchScript module; see docs/poses.md.
        channels: 2 gives U and V, as the paper's code has them; 3 gives part / 24, U and V.
        detection_threshold: score in [0, 1] from which a person counts, where the model gives one.
        person: x and y, in pixels of the clip, of the person's middle where the track begins.
        device: of torch; by default a GPU where there is one.
    """

    model: str | Path
    channels: int = 2
    detection_threshold: float = 0.5
    person: tuple[float, float] | None = None
    device: str = ""
    name: str = field(default="densepose", init=False)
    _reader: SurfaceReader | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.channels not in (2, 3):
            raise InputError(f"channels must be 2 or 3, got {self.channels}")

    def __getstate__(self) -> dict[str, Any]:
        """Without the loaded module, which cannot be pickled."""
        return {**self.__dict__, "_reader": None}

    def __call__(
        self, clip: Frames, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Estimates at the clip's own resolution, and puts the maps into `height x width`.

        Raises:
            InputError: the model cannot be used.
        """
        if self._reader is None:
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._reader = SurfaceReader(
                self.model, threshold=self.detection_threshold, device=device
            )
        size = (clip.height, clip.width)
        placement = Placement.fit(size, (height, width))
        num_frames = len(clip)
        maps = np.zeros((num_frames, self.channels, height, width), np.float32)
        places = np.zeros((num_frames, 2, height, width), np.uint16)
        joints = np.zeros((num_frames, parts.NUM_PARTS, 4), np.float32)
        confidence = np.zeros(num_frames, np.float32)
        follower = BoxFollower(self.person)
        crowded: tuple[int, int] | None = None
        place: tuple[int, Float[np.ndarray, "2"]] | None = None
        for index, frame in enumerate(clip):
            people = self._reader(frame)
            chosen = follower.choose(people.boxes.numpy(), size[1])
            seen = None if chosen is None else surface(people, chosen, *size)
            if crowded is None and len(people.boxes) > 1:
                crowded = index, len(people.boxes)
            if seen is not None and chosen is not None:
                if place is None:
                    box = people.boxes[chosen].numpy()
                    place = index, (box[:2] + box[2:]) / 2
                whole = parts.to_maps(seen.labels[None], seen.uv[None], self.channels)
                maps[index] = placement.warp(whole, (height, width))[0]
                places[index] = placement.warp(to_places(whole), (height, width))[0]
                joints[index] = placement.move(parts.middles(seen.labels))
                confidence[index] = seen.confidence
            if progress is not None:
                progress(1)
        if crowded is not None and place is not None:
            rule = "the largest" if self.person is None else "the nearest to the place given"
            _warn_crowd(clip, crowded[1], crowded[0], rule, place[1], place[0])
        # A person that is too small to leave a pixel in the maps was not seen.
        found: np.ndarray = np.any(maps, axis=(1, 2, 3))
        return Track(
            maps=maps,
            joints=joints,
            confidence=confidence,
            found=found,
            joint_names=parts.NAMES,
            places=places,
        )


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Maps of a clip at its own size, and BlazePose's 33 points."""

    maps: Float[np.ndarray, "t u H W"]
    joints: Float[np.ndarray, "t 33 4"]


def read_ground_truth(clip: Frames, channels: int = 2) -> GroundTruth:
    """Reads `NAME.npz` beside `NAME.mp4`: arrays `parts`, `uv` and `joints`.

    The maps are U and V of the body's atlas where a part is seen; of 3 channels the first is
    the part / 24.

    Raises:
        InputError: `channels` is neither 2 nor 3; the file is missing, lacks an array, or is of
            another length or size.
    """
    if channels not in (2, 3):
        raise InputError(f"channels must be 2 or 3, got {channels}")
    path = Path(clip.source).with_suffix(".npz") if clip.source else None
    if path is None or not path.is_file():
        raise InputError(
            "estimator 'catwalk' needs the ground truth beside the video, "
            f"got no file {str(path) if path else '(the clip has no source)'!r}"
        )
    try:
        with open_arrays(path) as file:
            labels, uv, joints = file["parts"], file["uv"], file["joints"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"ground truth must hold parts, uv and joints, got {str(path)!r} ({error})"
        ) from error
    frames = slice(clip.first_frame, clip.first_frame + len(clip))
    labels, uv, joints = labels[frames], uv[frames], joints[frames]
    expected = (len(clip), clip.height, clip.width)
    if labels.shape != expected:
        raise InputError(
            f"ground truth must cover the clip's {expected} frames, height and width, "
            f"got {labels.shape} in {str(path)!r}"
        )
    scaled = np.moveaxis(uv.astype(np.float32) / np.iinfo(uv.dtype).max, -1, 1)
    # The file counts from the middle of the first pixel, motions from the picture's corner.
    places = joints + np.array([0.5, 0.5, 0], np.float32)
    full = np.concatenate([places, np.ones_like(joints[..., :1])], axis=-1)
    return GroundTruth(maps=parts.to_maps(labels, scaled, channels), joints=full.astype(np.float32))


@dataclass(kw_only=True)
class CatwalkPose:
    """The exact maps and joints that the catwalk's renderer wrote beside its video.

    Attributes:
        channels: 2 gives U and V, 3 gives part / 24, U and V.
    """

    channels: int = 2
    name: str = field(default="catwalk", init=False)

    def __call__(
        self, clip: Frames, *, height: int, width: int, progress: Progress | None = None
    ) -> Track:
        """Reads `NAME.npz` beside `clip.source`, `NAME.mp4`.

        Raises:
            InputError: the clip has no ground truth, or one of another length or size.
        """
        truth = read_ground_truth(clip, self.channels)
        placement = Placement.fit((clip.height, clip.width), (height, width))
        maps = placement.warp(truth.maps, (height, width))
        places = placement.warp(to_places(truth.maps), (height, width))
        found: np.ndarray = np.any(maps > 0, axis=(1, 2, 3))
        if progress is not None:
            progress(len(maps))
        return Track(
            maps=maps,
            joints=placement.move(truth.joints),
            confidence=found.astype(np.float32),
            found=found,
            joint_names=NAMES,
            places=places,
        )


def to_places(maps: Float[np.ndarray, "t u H W"]) -> UInt16[np.ndarray, "t 2 H W"]:
    """U and V of pose maps in 16 bits."""
    return np.round(maps[:, -2:] * np.iinfo(np.uint16).max).astype(np.uint16)


_ESTIMATORS: dict[str, Callable[..., PoseEstimator]] = {
    "blazepose": BlazePose,
    "catwalk": CatwalkPose,
    "densepose": DensePose,
}

ESTIMATORS = tuple(_ESTIMATORS)
"""Names that `estimator` accepts."""


def estimator(name: str, **options: Any) -> PoseEstimator:
    """The estimator of that name; options are those of its class.

    Args:
        name: one of `ESTIMATORS`; `densepose:FILE` names the model too.
        **options: of the estimator's class.

    Raises:
        InputError: no estimator has that name, its file is missing, or an option does not fit it.
    """
    kind, file = _split(name)
    return _ESTIMATORS[kind](**({"model": file} if file else {}), **options)


def identify(name: str) -> str:
    """A name for an estimator and its weights that can be a file's: equal names, equal poses.

    Raises:
        InputError: as for `estimator`.
    """
    kind, file = _split(name)
    if not file:
        return kind
    with Path(file).open("rb") as content:
        return f"{kind}-{hashlib.file_digest(content, 'sha256').hexdigest()[:16]}"


def _split(name: str) -> tuple[str, str]:
    """Name of the class and the model's file, empty where there is none."""
    kind, _, file = name.partition(":")
    if kind not in _ESTIMATORS:
        raise InputError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {name!r}")
    needs_file = _ESTIMATORS[kind] is DensePose
    if needs_file != bool(file):
        expected = "densepose:FILE, FILE a TorchScript model" if needs_file else kind
        raise InputError(f"estimator must be {expected}, got {name!r}")
    if file and not Path(file).is_file():
        raise InputError(
            f"estimator densepose must be given an existing TorchScript file, got {file!r}: "
            "docs/poses.md lists sources"
        )
    return kind, file
