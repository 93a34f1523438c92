"""Follows one person through a video. Knows nothing of pose maps or files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from dreampose.poses.blazepose import LandmarkReader, Landmarks, PersonDetector, Region
from dreampose.poses.landmarks import body_height, point

_PRESENCE = 0.5
"""Below it the region holds nobody."""
_LARGEST_STEP = 0.3
"""Largest move of the hips between two frames, in body heights; more is another person."""
_LARGEST_GROWTH = 1.6
"""Largest change of size between two frames."""
_OFF_CENTER = 0.08
"""A person further off the middle of the region, in body heights, is looked at again."""
_LOOKS = 3
"""Looks at one frame at the most."""
_SAME_PERSON = 0.25
"""Two findings nearer than this, in body heights, are one person."""
_CENTRAL = 0.05
"""How much being central counts: a person at the edge must be this share larger."""
_WITHIN = 0.7
"""A finding with more than this share of its area within a surer one's is part of that person."""
_WIDE = 1.4
"""Pictures with sides further apart than this are searched in square tiles as well."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One frame: the person followed, or None; how many people a search of the frame found."""

    landmarks: Landmarks | None
    num_people: int | None = None
    """None where the frame was not searched."""


def _hips(landmarks: Landmarks) -> Float[np.ndarray, "2"]:
    return point(landmarks.joints, "middle_hip")[:2]


def _size(landmarks: Landmarks) -> float:
    return float(body_height(landmarks.joints[None])[0])


class Follower:
    """Finds people and follows the one that stands out."""

    def __init__(self, detector: PersonDetector, reader: LandmarkReader) -> None:
        """Takes the two networks."""
        self._detector = detector
        self._reader = reader

    def find(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[Landmarks]:
        """Everybody in the picture, each once; the largest first, of equals the most central."""
        height, width = frame.shape[:2]
        regions: list[tuple[float, Region]] = []
        for left, top, right, bottom in _views(height, width):
            for detection in self._detector(frame[top:bottom, left:right]):
                region = detection.region
                center = region.center + np.array([left, top], np.float32)
                moved = Region(center=center, side=region.side, turn=region.turn)
                regions.append((detection.score, moved))
        people: list[Landmarks] = []
        for _, region in sorted(regions, key=lambda item: -item[0]):
            # A second look from the person's own region; the detector's is rough.
            landmarks = self._reader(frame, region)
            if landmarks.presence >= _PRESENCE:
                landmarks = self._reader(frame, landmarks.region)
            if landmarks.presence < _PRESENCE or not _inside(landmarks, height, width):
                continue
            if not any(_same(landmarks, other) for other in people):
                people.append(landmarks)

        def standing_out(landmarks: Landmarks) -> float:
            aside = abs(float(_hips(landmarks)[0]) / width - 0.5) * 2
            return _size(landmarks) * (1 - _CENTRAL * min(aside, 1.0))

        return sorted(people, key=standing_out, reverse=True)

    def _look(self, frame: UInt8[np.ndarray, "H W 3"], region: Region) -> Landmarks:
        """Reads a region, and again where the person has moved off its middle: it lags there."""
        landmarks = self._reader(frame, region)
        for _ in range(_LOOKS - 1):
            step = float(np.hypot(*(_hips(landmarks) - region.center)))
            if landmarks.presence < _PRESENCE or step < _OFF_CENTER * _size(landmarks):
                break
            region = landmarks.region
            landmarks = self._reader(frame, region)
        return landmarks

    def follow(
        self,
        frames: UInt8[np.ndarray, "t H W 3"],
        *,
        search_every: int,
        near: tuple[float, float] | None = None,
    ) -> Iterator[Sighting]:
        """Yields one sighting a frame.

        The person is read where the frame before left off. Where that finds nobody, or somebody
        too far off or of another size, the frame is searched and the person nearest to the track
        taken, if near enough. Every `search_every` frames others are looked for, to be reported.
        The track begins with the person whose hips are nearest to the pixel `near`, or with the
        one who stands out.
        """
        last: Landmarks | None = None
        num_lost = 0
        for index, frame in enumerate(frames):
            found: Landmarks | None = None
            people: list[Landmarks] | None = None
            if last is not None:
                found = _nearest([self._look(frame, last.region)], last, num_lost)
            if found is None or index % search_every == 0:
                people = self.find(frame)
            if found is None and people and last is None:
                found = people[0] if near is None else min(people, key=_distance_to(near))
            elif found is None and people and last is not None:
                found = _nearest(people, last, num_lost)
            num_lost = 0 if found is not None else num_lost + 1
            last = found or last
            yield Sighting(landmarks=found, num_people=None if people is None else len(people))


class BoxFollower:
    """Chooses the same person in every frame by boxes: corners x, y, x, y in pixels."""

    def __init__(self, near: tuple[float, float] | None = None) -> None:
        """Begins with the person whose box is centred nearest to `near`, or with the largest."""
        self._near = near
        self._last: Float[np.ndarray, "4"] | None = None
        self._num_lost = 0

    def choose(self, boxes: Float[np.ndarray, "n 4"], width: int) -> int | None:
        """Index of the person followed in the next frame, of the picture's `width`, if there."""
        chosen = None
        if len(boxes):
            chosen = self._first(boxes, width) if self._last is None else self._next(boxes)
        if chosen is None:
            self._num_lost += 1
        else:
            self._last, self._num_lost = boxes[chosen], 0
        return chosen

    def _first(self, boxes: Float[np.ndarray, "n 4"], width: int) -> int:
        middles, spans = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        if self._near is not None:
            return int(np.linalg.norm(middles - np.array(self._near), axis=1).argmin())
        aside = np.minimum(np.abs(middles[:, 0] / width - 0.5) * 2, 1)
        return int((np.sqrt(spans.prod(axis=1)) * (1 - _CENTRAL * aside)).argmax())

    def _next(self, boxes: Float[np.ndarray, "n 4"]) -> int | None:
        last = self._last
        assert last is not None
        heights = np.maximum(boxes[:, 3] - boxes[:, 1], 1e-6)
        last_height = max(float(last[3] - last[1]), 1e-6)
        moves = (boxes[:, :2] + boxes[:, 2:] - last[:2] - last[2:]) / 2
        steps = np.linalg.norm(moves, axis=1) / np.maximum(heights, last_height)
        growth = np.maximum(heights, last_height) / np.minimum(heights, last_height)
        possible = (steps < _largest_step(self._num_lost)) & (growth < _LARGEST_GROWTH)
        return int(np.where(possible, steps, np.inf).argmin()) if possible.any() else None


def _same(landmarks: Landmarks, surer: Landmarks) -> bool:
    """Whether a finding is one that was made already: near it, or a part of it.

    A square tile that cuts a person in two may show the network a smaller or upside-down one.
    """
    step = np.hypot(*(_hips(landmarks) - _hips(surer)))
    if step < _SAME_PERSON * max(_size(landmarks), _size(surer)):
        return True
    low, high = (reduce(landmarks.joints[:, :2], axis=0) for reduce in (np.min, np.max))
    other_low, other_high = (reduce(surer.joints[:, :2], axis=0) for reduce in (np.min, np.max))
    shared = np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0)
    return bool(np.prod(shared) > _WITHIN * np.prod(np.maximum(high - low, 1e-6)))


def _distance_to(place: tuple[float, float]) -> Callable[[Landmarks], float]:
    return lambda landmarks: float(np.hypot(*(_hips(landmarks) - np.array(place))))


def _inside(landmarks: Landmarks, height: int, width: int) -> bool:
    """Whether the hips lie in the picture: a person mostly outside is not one to follow."""
    x, y = _hips(landmarks)
    return bool(0 <= x < width and 0 <= y < height)


def _largest_step(num_lost: int) -> float:
    """How far the same person can have moved, in body heights, after `num_lost` frames unseen."""
    return _LARGEST_STEP * (1 + min(num_lost, 4) / 2)


def _nearest(people: Sequence[Landmarks], last: Landmarks, num_lost: int) -> Landmarks | None:
    """Of these people the one nearest to where the track ended, if it can be the same."""
    best, best_step = None, _largest_step(num_lost)
    for landmarks in people:
        if landmarks.presence < _PRESENCE:
            continue
        size, last_size = _size(landmarks), _size(last)
        step = float(np.hypot(*(_hips(landmarks) - _hips(last)))) / max(size, last_size, 1e-6)
        growth = max(size, last_size) / max(min(size, last_size), 1e-6)
        if step < best_step and growth < _LARGEST_GROWTH:
            best, best_step = landmarks, step
    return best


def _views(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The whole picture, and overlapping squares along its longer side where it is long."""
    views = [(0, 0, width, height)]
    short, long = sorted((height, width))
    if long < _WIDE * short:
        return views
    num_tiles = int(np.ceil(2 * long / short)) - 1
    for start in np.linspace(0, long - short, num_tiles).round().astype(int).tolist():
        tall = height > width
        left, top = (0, start) if tall else (start, 0)
        views.append((left, top, left + short, top + short))
    return views
