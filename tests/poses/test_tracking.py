"""One person is followed by place, size and clothing; misses, cuts and other people end a track."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from dreampose.poses.blazepose import Detection, Landmarks, Region
from dreampose.poses.tracking import Follower, hips_of

HEIGHT, WIDTH, SIZE, FPS = 240, 480, 120, 20.0
RED, BLUE, GREEN = (190, 40, 40), (40, 60, 190), (40, 150, 60)


@dataclass
class Actor:
    """A person of one colour on a path of hips; `seen` frames only."""

    colour: tuple[int, int, int]
    path: dict[int, tuple[float, float]]
    score: float = 0.9
    shake: float = 0.0


@dataclass
class Stage:
    """Stand-ins for the networks: frames carry their number in the first pixel."""

    actors: list[Actor]
    skeleton: object
    num_frames: int
    background: dict[int, int] = field(default_factory=dict)
    reads: int = 0

    def joints(self, actor, frame):
        x, y = actor.path[frame]
        joints = self.skeleton(x=x, hip_y=y, height=SIZE)[0].copy()
        shake = np.random.default_rng(frame).normal(0, actor.shake * SIZE, (33, 2))
        joints[:, :2] += shake
        joints[[23, 24], :2] -= shake[[23, 24]]
        return joints

    def __iter__(self):
        for frame in range(self.num_frames):
            level = self.background.get(frame, 200)
            picture = np.full((HEIGHT, WIDTH, 3), level, np.uint8)
            for actor in self.actors:
                if frame in actor.path:
                    x, y = (round(v) for v in actor.path[frame])
                    picture[y - 60 : y + 60, max(x - 25, 0) : x + 25] = actor.colour
            picture[0, 0] = frame
            yield picture

    def detect(self, picture):
        if picture.shape[:2] != (HEIGHT, WIDTH):
            return []
        frame = int(picture[0, 0, 0])
        return [
            Detection(score=actor.score, region=self.region(actor.path[frame]))
            for actor in self.actors
            if frame in actor.path
        ]

    def region(self, hips):
        return Region(center=np.array(hips, np.float32), side=1.35 * SIZE, turn=0.0)

    def read(self, picture, region):
        """The actor nearest to the region's middle, if any is inside it."""
        self.reads += 1
        frame = int(picture[0, 0, 0])
        there = [actor for actor in self.actors if frame in actor.path]

        def distance(actor):
            return float(np.hypot(*(np.array(actor.path[frame]) - region.center)))

        nearest = min(there, key=distance, default=None)
        if nearest is None or distance(nearest) > 0.6 * SIZE:
            return Landmarks(joints=self.skeleton()[0], presence=0.0, region=region)
        return Landmarks(
            joints=self.joints(nearest, frame),
            presence=1.0,
            region=self.region(nearest.path[frame]),
        )

    def follow(self, near=None):
        follower = Follower(self.detect, self.read)  # type: ignore[arg-type]
        return follower.follow(self, fps=FPS, num_frames=self.num_frames, near=near)


@pytest.fixture
def stage(skeleton):
    def build(*actors, num_frames=40, **more):
        return Stage(list(actors), skeleton, num_frames, **more)

    return build


def line(start, stop, x, speed, y=120.0):
    return {frame: (x + speed * (frame - start), y) for frame in range(start, stop)}


def without(path, *frames):
    return {frame: place for frame, place in path.items() if frame not in frames}


def columns(following):
    return {
        frame: float(hips_of(sighting.landmarks)[0])
        for frame, sighting in following.sightings.items()
    }


def test_a_walk_is_followed_in_every_frame(stage):
    path = line(0, 40, 60, 6)
    following = stage(Actor(RED, path)).follow()
    assert columns(following) == pytest.approx({f: x for f, (x, _) in path.items()}, abs=0.1)
    assert following.cuts == ()


def test_crossing_people_keep_their_tracks(stage):
    one, two = line(0, 40, 100, 6), line(0, 40, 340, -6)
    for path, near in ((one, (100, 120)), (two, (340, 120))):
        following = stage(Actor(RED, one), Actor(BLUE, two)).follow(near=near)
        seen = columns(following)
        assert len(seen) >= 30
        assert all(abs(x - path[frame][0]) < 5 for frame, x in seen.items())
        assert 39 in seen


@pytest.mark.parametrize("length", [4, 20])
def test_a_hidden_person_is_found_again_and_another_one_nearby_is_not_taken(stage, length):
    path = line(0, 60, 60, 4)
    hidden = range(15, 15 + length)
    other = Actor(BLUE, line(0, 60, 190, 0, y=130))
    following = stage(Actor(RED, without(path, *hidden)), other, num_frames=60).follow((60, 120))
    seen = columns(following)
    assert all(abs(x - path[frame][0]) < 5 for frame, x in seen.items())
    assert set(seen).isdisjoint(hidden)
    assert 59 in seen
    assert len(seen) >= 60 - length - 3


def test_another_person_in_the_same_place_after_a_loss_is_refused(stage):
    gone = Actor(RED, line(0, 15, 200, 0))
    comes = Actor(BLUE, line(22, 40, 205, 0))
    assert max(columns(stage(gone, comes).follow())) == 14


def test_a_weak_detection_starts_no_track_and_the_person_who_enters_late_is_followed(stage):
    tree = Actor(GREEN, line(0, 40, 400, 0), score=0.4)
    late = Actor(RED, line(15, 40, 60, 4))
    seen = columns(stage(tree, late).follow())
    assert min(seen) <= 17
    assert all(x < 200 for x in seen.values())


def test_points_that_jump_about_are_no_person(stage):
    ghost = Actor(GREEN, line(0, 40, 240, 0), shake=0.5)
    assert stage(ghost).follow().sightings == {}


def test_a_cut_ends_the_track(stage):
    before, after = Actor(RED, line(0, 20, 200, 1)), Actor(RED, line(20, 40, 220, 1))
    background = dict.fromkeys(range(20, 40), 40)
    following = stage(before, after, background=background).follow()
    assert following.cuts == (20,)
    assert max(following.sightings) == 19


def test_a_flash_does_not_end_the_track(stage):
    path = without(line(0, 40, 200, 1), 20)
    following = stage(Actor(RED, path), background={20: 0}).follow()
    assert set(following.sightings) >= set(range(24, 40))


def test_the_largest_person_at_first_is_followed(stage, skeleton):
    class Tall(Stage):
        def joints(self, actor, frame):
            joints = super().joints(actor, frame)
            if actor.colour == BLUE:
                joints[:, :2] = (joints[:, :2] - actor.path[frame]) * 1.2 + actor.path[frame]
                joints[:, 2] *= 1.2
            return joints

    actors = [Actor(RED, line(0, 20, 120, 0)), Actor(BLUE, line(0, 20, 330, 0))]
    seen = columns(Tall(actors, skeleton, 20).follow())
    assert all(x > 300 for x in seen.values())


def test_frames_are_taken_one_by_one(stage):
    """A stream is read once, in order, and none of its frames is kept."""
    scene = stage(Actor(RED, line(0, 40, 60, 6)))
    frames = iter(scene)
    follower = Follower(scene.detect, scene.read)  # type: ignore[arg-type]
    following = follower.follow(frames, fps=FPS, num_frames=40)
    assert following.num_frames == 40
    assert next(frames, None) is None
