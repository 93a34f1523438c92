"""Tracking of all people in a video, and choice of one."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.poses.appearance import Appearance
from dreampose.poses.blazepose import Detection, Landmarks, Region
from dreampose.poses.landmarks import INDEX, body_height, point

_PRESENCE = 0.5
"""Presence below which a region shows no person."""
_OFF_CENTER = 0.08
"""A person further off the middle of the region, in body heights, is read again."""
_READS = 3
"""Readings of one region at the most."""
_SAME_PERSON = 0.25
"""Two findings nearer than this, in body heights, are one person."""
_WITHIN = 0.7
"""A finding with more than this share of its area within a surer one's is part of that person."""
_CENTRAL = 0.05
"""Preference for the middle of the picture: a person at the edge must be this share larger."""
_WIDE = 1.4
"""Pictures with a larger ratio of their sides are searched in square tiles as well."""

_SEARCH_SECONDS = 0.5
"""Time between two searches of the whole picture while all tracks are seen …"""
_LOST_SEARCH_SECONDS = 0.08
"""… and while a track is lost or there is none."""
_START_SECONDS = 0.1
"""A track counts from this much of good sightings on, …"""
_START_FRAMES = 3
"""… and from this many frames."""
_START_SCORE = 0.5
"""Detector score from which a track may start: trees, furniture and noise stay below."""
_START_SPEED = 6.0
"""Median speed of the points against the body, in body heights per second, above which a track is
noise."""
_REST = 0.06
"""Unit of the deviation from the predicted place, in body heights, …"""
_SPEED = 2.0
"""… plus this, in body heights per second, over one frame, …"""
_LOST_SPEED = 1.0
"""… plus this for each further second without a sighting: people do not turn about while hidden."""
_GROWTH = 0.25
"""Unit of the change of the logarithm of the size."""
_LOST_GROWTH = 0.3
"""Added to it for each second without a sighting."""
_COLOUR = 16.0
"""Unit of the distance in appearance."""
_LOST_COLOUR = 12.0
"""The same for a track that was lost for more than a moment."""
_MOMENT_SECONDS = 0.1
_LARGEST_COST = 2.0
"""Sum of the squares of place, size and appearance, in their units, that continues a track."""
_ADAPT_RATE = 4.0
"""Share per second by which sightings move a track's appearance."""
_RELINK_REST = 0.1
"""Added to the unit of place where a track is taken up by another."""
_KEEP_SECONDS = 0.5
"""A track lost for longer ends; a later one may continue it."""
_LOOK_SECONDS = 0.2
"""A lost track is read at its predicted place for this long; later, only searches find it."""
_CHOICE_SECONDS = 0.1
"""People who appear within this time of the first one are candidates to be followed."""

_LEGS = [INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("knee", "ankle")]
_LEGS_SEEN = 0.5
"""Mean visibility of knees and ankles below which lengths of the legs are not used."""
_HEIGHT_PER_TRUNK = 2.45
"""Standing height over the length from the ears along the spine to the hips."""

_SMALL = 32
"""Side in pixels at which frames are compared to find cuts."""
_CUT = 0.08
"""Mean absolute difference of two frames in [0, 1] from which it may be a cut …"""
_CUT_FACTOR = 5.0
"""… if it is this many times that of the frames around."""
_CUT_AROUND = 6
"""Frames to either side that a cut is compared with."""


Picture = UInt8[np.ndarray, "H W 3"]
Detector = Callable[[Picture], list[Detection]]
"""Finds the people in a picture."""
Reader = Callable[[Picture, Region], Landmarks]
"""Reads the points of the person in a region of a picture."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One person in one frame.

    Attributes:
        frame: index of the frame.
        landmarks: the person's points, in pixels.
        appearance: of the clothing.
        score: of the detector; None where the person was read without a search.
    """

    frame: int
    landmarks: Landmarks
    appearance: Appearance
    score: float | None = None


@dataclass(kw_only=True)
class PersonTrack:
    """Sightings of one person, in order of their frames.

    Attributes:
        sightings: at most one a frame.
        appearance: running mean of the sightings'.
        velocity: of the hips, in pixels per frame.
        sizes: body heights of the last sightings, in pixels.
        adapt: share by which each sighting moves the appearance.
        confirmed: whether it is a person for sure.
    """

    sightings: list[Sighting]
    appearance: Appearance
    velocity: Float[np.ndarray, "2"] = field(default_factory=lambda: np.zeros(2))
    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=9))
    adapt: float = 0.1
    confirmed: bool = False

    @property
    def first(self) -> int:
        """Index of its first frame."""
        return self.sightings[0].frame

    @property
    def last(self) -> int:
        """Index of its last frame."""
        return self.sightings[-1].frame

    @property
    def size(self) -> float:
        """Body height in pixels, median of the last sightings."""
        return float(np.median(self.sizes))

    def predict(self, frame: int) -> Float[np.ndarray, "2"]:
        """Where the hips are expected: constant velocity from the last sighting."""
        return hips_of(self.sightings[-1].landmarks) + self.velocity * (frame - self.last)

    def add(self, sighting: Sighting) -> None:
        """Appends a sighting and updates velocity, size and appearance."""
        if self.sightings:
            elapsed = sighting.frame - self.last
            moved = hips_of(sighting.landmarks) - hips_of(self.sightings[-1].landmarks)
            share = 0.3 if len(self.sightings) > 2 else 0.6
            self.velocity = (1 - share) * self.velocity + share * moved / elapsed
        # Masks of a long video would fill the memory.
        points = replace(sighting.landmarks, mask=None, to_picture=None)
        self.sightings.append(replace(sighting, landmarks=points))
        self.sizes.append(size_of(sighting.landmarks))
        self.appearance = self.appearance.blend(sighting.appearance, self.adapt)


@dataclass(frozen=True, kw_only=True)
class Following:
    """One person through a video.

    Attributes:
        sightings: of the person, by frame; frames without one show the person not or not clearly.
        num_people: of each frame that was searched, how many people were found.
        cuts: frames that begin another shot.
        num_frames: frames of the video.
    """

    sightings: dict[int, Sighting]
    num_people: dict[int, int]
    cuts: tuple[int, ...]
    num_frames: int


def hips_of(landmarks: Landmarks) -> Float[np.ndarray, "2"]:
    """Middle of the hips in pixels."""
    return point(landmarks.joints, "middle_hip")[:2].astype(np.float64)


def size_of(landmarks: Landmarks) -> float:
    """Body height in pixels; of people whose legs are hidden, from head and trunk."""
    joints = landmarks.joints
    if float(joints[_LEGS, 3].mean()) >= _LEGS_SEEN:
        return float(body_height(joints[None])[0])
    ears, shoulders, hips = (point(joints, f"middle_{n}") for n in ("ear", "shoulder", "hip"))
    chain = np.linalg.norm(ears - shoulders) + np.linalg.norm(shoulders - hips)
    return float(_HEIGHT_PER_TRUNK * chain)


class Follower:
    """Finds people in pictures and follows one through a video."""

    def __init__(self, detector: Detector, reader: Reader) -> None:
        """Args are the two networks, such as `PersonDetector` and `LandmarkReader`."""
        self._detector = detector
        self._reader = reader

    def find(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[Landmarks]:
        """All people in a picture, each once; largest first, of equals the most central."""
        return [landmarks for landmarks, _ in self.search(frame)]

    def search(self, frame: UInt8[np.ndarray, "H W 3"]) -> list[tuple[Landmarks, float]]:
        """As `find`, with the detector's scores in [0, 1]."""
        height, width = frame.shape[:2]
        regions: list[tuple[float, Region]] = []
        for left, top, right, bottom in _views(height, width):
            for detection in self._detector(frame[top:bottom, left:right]):
                region = detection.region
                center = region.center + np.array([left, top], np.float32)
                moved = Region(center=center, side=region.side, turn=region.turn)
                regions.append((detection.score, moved))
        people: list[tuple[Landmarks, float]] = []
        for score, region in sorted(regions, key=lambda item: -item[0]):
            # A second reading from the person's own region; the detector's is rough.
            landmarks = self._reader(frame, region)
            if landmarks.presence >= _PRESENCE:
                landmarks = self._reader(frame, landmarks.region)
            if landmarks.presence < _PRESENCE or not _inside(landmarks, height, width):
                continue
            if not any(_same(landmarks, other) for other, _ in people):
                people.append((landmarks, score))
        return sorted(people, key=lambda item: _prominence(item[0], width), reverse=True)

    def follow(
        self,
        frames: Iterable[UInt8[np.ndarray, "H W 3"]],
        *,
        fps: float,
        num_frames: int,
        near: tuple[float, float] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Following:
        """Follows one person through a video.

        All people are tracked, so that one is not mistaken for another: by place (constant
        velocity), size and appearance. A track counts after a run of good sightings, and ends at
        a cut. Followed is the person whose hips are nearest to the pixel `near` at first, else
        the one who is largest (of equals the most central); across a loss, the track that goes on
        where the person must be and looks like them, if no other does as well.

        Args:
            frames: one after the other; none is kept.
            fps: frames per second.
            num_frames: how many frames there are.
            near: pixel x, y.
            progress: called with 1 after every frame.
        """
        tracker = _Tracker(self, fps=fps, num_frames=num_frames)
        index = -1
        for index, frame in enumerate(frames):
            tracker.step(index, frame)
            if progress is not None:
                progress(1)
        return tracker.result(index + 1, near)

    def read(self, frame: UInt8[np.ndarray, "H W 3"], region: Region) -> Landmarks:
        """Reads a region, and again where the person has moved off its middle."""
        landmarks = self._reader(frame, region)
        for _ in range(_READS - 1):
            step = float(np.hypot(*(hips_of(landmarks) - region.center)))
            if landmarks.presence < _PRESENCE or step < _OFF_CENTER * size_of(landmarks):
                break
            region = landmarks.region
            landmarks = self._reader(frame, region)
        return landmarks


class _CutFinder:
    """Finds frames that begin another shot, one frame at a time."""

    def __init__(self) -> None:
        self._last: Float[np.ndarray, "s s 3"] | None = None
        self.changes: list[float] = []

    def add(self, frame: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Whether this frame may begin another shot, by the frames before it."""
        small = cv2.resize(frame, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
        small = small.astype(np.float32)
        if self._last is not None:
            self.changes.append(float(np.abs(small - self._last).mean()) / 255)
        self._last = small
        if not self.changes or self.changes[-1] <= _CUT:
            return False
        before = self.changes[-1 - _CUT_AROUND : -1]
        return self.changes[-1] > _CUT_FACTOR * (float(np.median(before)) if before else 0.0)

    def cuts(self) -> list[int]:
        """Frames that are unlike the one before, where the others nearby are alike."""
        changes = np.array(self.changes)
        found: list[int] = []
        for index in np.flatnonzero(changes > _CUT).tolist():
            first = max(0, index - _CUT_AROUND)
            around = np.delete(changes[first : index + _CUT_AROUND + 1], index - first)
            usual = float(np.median(around)) if len(around) else 0.0
            if changes[index] > _CUT_FACTOR * usual:
                found.append(index + 1)
        return found


class _Tracker:
    """Tracks of all people, frame by frame."""

    def __init__(self, follower: Follower, *, fps: float, num_frames: int) -> None:
        self._follower = follower
        self._fps = fps
        self._run = max(1, min(num_frames, max(_START_FRAMES, round(_START_SECONDS * fps))))
        self._search_every = max(1, round(_SEARCH_SECONDS * fps))
        self._lost_search_every = max(1, round(_LOST_SEARCH_SECONDS * fps))
        # One picture has no run: whatever the detector finds in it counts.
        self._start_score = _START_SCORE if num_frames > 1 else 0.0
        self._look = max(2, round(_LOOK_SECONDS * fps))
        self._last_search = -self._search_every
        self._keep = max(2, round(_KEEP_SECONDS * fps))
        self._active: list[PersonTrack] = []
        self._ended: list[PersonTrack] = []
        self._cuts = _CutFinder()
        self._num_people: dict[int, int] = {}
        self._width = 1

    def step(self, index: int, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        """Adds one frame."""
        self._width = frame.shape[1]
        if self._cuts.add(frame):
            self._ended += self._active
            self._active = []
            self._last_search = index - self._search_every
        candidates = [
            Sighting(frame=index, landmarks=read, appearance=Appearance.measure(frame, read.joints))
            for track in self._active
            if index - track.last <= self._look
            for read in self._reads(track, index, frame)
        ]
        self._assign(candidates, index)
        people_known = [track for track in self._active if track.confirmed]
        lost = not people_known or any(track.last < index for track in people_known)
        since = index - self._last_search
        if since >= (self._lost_search_every if lost else self._search_every):
            self._last_search = index
            people = self._follower.search(frame)
            self._num_people[index] = len(people)
            found = [
                Sighting(
                    frame=index,
                    landmarks=landmarks,
                    appearance=Appearance.measure(frame, landmarks.joints),
                    score=score,
                )
                for landmarks, score in people
            ]
            self._note_scores(found, index)
            fresh = self._assign(found, index)
            taken = [track.sightings[-1] for track in self._active if track.last == index]
            for sighting in found:
                known = any(_same(sighting.landmarks, other.landmarks) for other in taken)
                sure = (sighting.score or 0.0) >= self._start_score
                if sure and id(sighting) not in fresh and not known:
                    self._begin(sighting)
        for track in self._active:
            if not track.confirmed:
                track.confirmed = self._is_person(track)
        # A track that never was a person goes at its first gap or two; a lost one is kept a while.
        still: list[PersonTrack] = []
        for track in self._active:
            patience = self._keep if track.confirmed else 2
            (still if index - track.last <= patience else self._ended).append(track)
        self._active = still

    def _reads(
        self, track: PersonTrack, index: int, frame: UInt8[np.ndarray, "H W 3"]
    ) -> list[Landmarks]:
        """What the places at which the track may go on show."""
        last = track.sightings[-1].landmarks
        region = last.region
        moved = Region(
            center=region.center + track.velocity * (index - track.last - 0.5),
            side=region.side,
            turn=region.turn,
        )
        around = Region(center=track.predict(index), side=1.35 * track.size, turn=region.turn)
        reads: list[Landmarks] = []
        for place in (moved, around):
            read = self._follower.read(frame, place)
            if read.presence < _PRESENCE or not _inside(read, *frame.shape[:2]):
                continue
            reads.append(read)
            looks = Appearance.measure(frame, read.joints)
            sighting = Sighting(frame=index, landmarks=read, appearance=looks)
            if self._cost(track, sighting) is not None:
                break
        return reads

    def _cost(self, track: PersonTrack, sighting: Sighting) -> float | None:
        """How badly a sighting continues a track; None where it cannot."""
        elapsed = (sighting.frame - track.last) / self._fps
        one = 1 / self._fps
        size, last_size = size_of(sighting.landmarks), track.size
        offset = hips_of(sighting.landmarks) - track.predict(sighting.frame)
        step = float(np.hypot(*offset)) / max(size, last_size, 1e-6)
        lost = max(elapsed - one, 0)
        growth = abs(float(np.log(max(size, 1e-6) / max(last_size, 1e-6))))
        colour = track.appearance.distance(sighting.appearance)
        cost = (
            (step / (_REST + _SPEED * one + _LOST_SPEED * lost)) ** 2
            + (growth / (_GROWTH + _LOST_GROWTH * lost)) ** 2
            + (colour / (_COLOUR if lost <= _MOMENT_SECONDS else _LOST_COLOUR)) ** 2
        )
        return cost if cost <= _LARGEST_COST else None

    def _assign(self, candidates: list[Sighting], index: int) -> set[int]:
        """Gives candidates to the tracks that they continue best; ids of those given or known."""
        waiting = [track for track in self._active if track.last < index]
        pairs = [
            (cost - (0.5 if track.confirmed else 0.0), track, sighting)
            for track in waiting
            for sighting in candidates
            if (cost := self._cost(track, sighting)) is not None
        ]
        used: set[int] = set()
        for _, track, sighting in sorted(pairs, key=lambda pair: pair[0]):
            taken = [t.sightings[-1] for t in self._active if t.last == index]
            if track.last == index or id(sighting) in used:
                continue
            if any(_same(sighting.landmarks, other.landmarks) for other in taken):
                continue
            track.add(sighting)
            used.add(id(sighting))
        return used

    def _note_scores(self, found: list[Sighting], index: int) -> None:
        """Keeps the detector's score of people who are on a track already."""
        for track in self._active:
            last = track.sightings[-1]
            if last.frame != index or last.score is not None:
                continue
            for sighting in found:
                if _near(sighting.landmarks, last.landmarks):
                    track.sightings[-1] = Sighting(
                        frame=index,
                        landmarks=last.landmarks,
                        appearance=last.appearance,
                        score=sighting.score,
                    )
                    break

    def _begin(self, sighting: Sighting) -> None:
        track = PersonTrack(
            sightings=[],
            appearance=sighting.appearance,
            adapt=min(1.0, _ADAPT_RATE / self._fps),
        )
        track.add(sighting)
        self._active.append(track)

    def _is_person(self, track: PersonTrack) -> bool:
        """Whether a track has had a run of sightings that only a person gives."""
        if len(track.sightings) < self._run:
            return False
        return unrest(track.sightings, self._fps) < _START_SPEED

    def result(self, num_frames: int, near: tuple[float, float] | None) -> Following:
        """The person's sightings over the whole video."""
        cuts = self._cuts.cuts()
        tracks = [
            part
            for track in sorted(self._ended + self._active, key=lambda track: track.first)
            if track.confirmed
            for part in _split(track, cuts)
        ]
        chosen = self._choose(tracks, near, cuts)
        return Following(
            sightings={s.frame: s for track in chosen for s in track.sightings},
            num_people=self._num_people,
            cuts=tuple(cuts),
            num_frames=num_frames,
        )

    def _choose(
        self, tracks: list[PersonTrack], near: tuple[float, float] | None, cuts: list[int]
    ) -> list[PersonTrack]:
        """The track to follow, and those that continue it."""
        if not tracks:
            return []
        begin = min(track.first for track in tracks)
        early = [t for t in tracks if t.first <= begin + _CHOICE_SECONDS * self._fps]

        def distance(track: PersonTrack) -> float:
            return float(np.hypot(*(hips_of(track.sightings[0].landmarks) - np.array(near))))

        def prominence(track: PersonTrack) -> float:
            first = track.sightings[: self._run]
            return float(np.median([_prominence(s.landmarks, self._width) for s in first]))

        current = max(early, key=prominence) if near is None else min(early, key=distance)
        chosen = [current]
        while (following := self._continue(chosen[-1], tracks, cuts)) is not None:
            chosen.append(following)
        return chosen

    def _continue(
        self, track: PersonTrack, tracks: list[PersonTrack], cuts: list[int]
    ) -> PersonTrack | None:
        """The one track that takes up a lost one; None where none or several could."""
        possible: list[tuple[float, PersonTrack]] = []
        for other in tracks:
            if other.first <= track.last:
                continue
            between = [cut for cut in cuts if track.last < cut <= other.first]
            if between and not self._is_flash(between):
                continue
            cost = self._relink_cost(track, other)
            if cost is not None:
                possible.append((cost, other))
        if not possible:
            return None
        possible.sort(key=lambda item: item[0])
        best = possible[0][1]
        rivals = [o for c, o in possible[1:] if c < 1.5 * possible[0][0] and o.first <= best.last]
        return None if rivals else best

    def _is_flash(self, cuts: list[int]) -> bool:
        """Whether cuts lead to another picture for a moment only, and back."""
        return len(cuts) == 2 and cuts[1] - cuts[0] <= self._keep

    def _relink_cost(self, track: PersonTrack, other: PersonTrack) -> float | None:
        elapsed = (other.first - track.last) / self._fps
        start = other.sightings[0].landmarks
        size = max(size_of(start), track.size, 1e-6)
        # People may stop or turn while hidden: anywhere between standing still and going on.
        going = track.velocity * (other.first - track.last)
        offset = hips_of(start) - hips_of(track.sightings[-1].landmarks)
        share = float(np.clip(offset @ going / max(going @ going, 1e-6), 0, 1))
        step = float(np.hypot(*(offset - share * going))) / size
        growth = abs(float(np.log(size_of(start) / max(track.size, 1e-6))))
        looks = other.sightings[: self._run]
        colour = float(np.median([track.appearance.distance(s.appearance) for s in looks]))
        cost = (
            (step / (_REST + _RELINK_REST + _LOST_SPEED * elapsed)) ** 2
            + (growth / (_GROWTH + _LOST_GROWTH * elapsed)) ** 2
            + (colour / _LOST_COLOUR) ** 2
        )
        return cost if cost <= _LARGEST_COST else None


def unrest(sightings: list[Sighting], fps: float) -> float:
    """Median speed of the points against the hips, in body heights per second."""
    speeds: list[float] = []
    for before, after in pairwise(sightings):
        elapsed = (after.frame - before.frame) / fps
        one, two = before.landmarks.joints[:, :2], after.landmarks.joints[:, :2]
        moved = (two - hips_of(after.landmarks)) - (one - hips_of(before.landmarks))
        size = max(size_of(before.landmarks), 1e-6)
        speeds.append(float(np.median(np.linalg.norm(moved, axis=1))) / size / elapsed)
    return float(np.median(speeds)) if speeds else 0.0


def _split(track: PersonTrack, cuts: list[int]) -> list[PersonTrack]:
    """The parts of a track between cuts."""
    edges = [cut for cut in cuts if track.first < cut <= track.last]
    if not edges:
        return [track]
    parts: list[PersonTrack] = []
    bounds = [track.first, *edges, track.last + 1]
    for start, stop in pairwise(bounds):
        kept = [s for s in track.sightings if start <= s.frame < stop]
        if kept:
            part = PersonTrack(
                sightings=[], appearance=kept[0].appearance, adapt=track.adapt, confirmed=True
            )
            for sighting in kept:
                part.add(sighting)
            parts.append(part)
    return parts


class BoxFollower:
    """Chooses the same person in every frame by boxes: corners x, y, x, y in pixels."""

    _LARGEST_STEP = 0.3
    """Largest move between two frames, in body heights; more is another person."""
    _LARGEST_GROWTH = 1.6
    """Largest change of size between two frames."""

    def __init__(self, near: tuple[float, float] | None = None) -> None:
        """Begins with the person whose box is centred nearest to `near`, or with the largest."""
        self._near = near
        self._last: Float[np.ndarray, "4"] | None = None
        self._num_lost = 0

    def choose(self, boxes: Float[np.ndarray, "n 4"], width: int) -> int | None:
        """Index of the followed person's box in the next frame, or None.

        Args:
            boxes: of all people.
            width: of the picture.
        """
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
        limit = self._LARGEST_STEP * (1 + min(self._num_lost, 4) / 2)
        possible = (steps < limit) & (growth < self._LARGEST_GROWTH)
        return int(np.where(possible, steps, np.inf).argmin()) if possible.any() else None


def _near(one: Landmarks, other: Landmarks) -> bool:
    step = float(np.hypot(*(hips_of(one) - hips_of(other))))
    return step < _SAME_PERSON * max(size_of(one), size_of(other))


def _same(landmarks: Landmarks, surer: Landmarks) -> bool:
    """Whether a finding is one that was made already: near it, or a part of it.

    A square tile that cuts a person in two may show the network a smaller or upside-down one.
    """
    if _near(landmarks, surer):
        return True
    low, high = (reduce(landmarks.joints[:, :2], axis=0) for reduce in (np.min, np.max))
    other_low, other_high = (reduce(surer.joints[:, :2], axis=0) for reduce in (np.min, np.max))
    shared = np.maximum(np.minimum(high, other_high) - np.maximum(low, other_low), 0)
    return bool(np.prod(shared) > _WITHIN * np.prod(np.maximum(high - low, 1e-6)))


def _prominence(landmarks: Landmarks, width: int) -> float:
    """Size, less a little for a place aside of the middle."""
    aside = abs(float(hips_of(landmarks)[0]) / width - 0.5) * 2
    return size_of(landmarks) * (1 - _CENTRAL * min(aside, 1.0))


def _inside(landmarks: Landmarks, height: int, width: int) -> bool:
    """Whether the hips lie in the picture: a person mostly outside is not one to follow."""
    x, y = hips_of(landmarks)
    return bool(0 <= x < width and 0 <= y < height)


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
