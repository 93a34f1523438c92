"""Exchanged left and right limbs are found and put right, at any place and length in a track."""

import numpy as np
import pytest

from dreampose.poses import sides
from dreampose.poses.landmarks import INDEX, NAMES
from dreampose.poses.sides import OPPOSITE, mend

FPS = 30.0
ARMS = [i for i, n in enumerate(NAMES) if any(p in n for p in ("shoulder", "elbow", "wrist"))]
LEGS = [i for i, n in enumerate(NAMES) if any(p in n for p in ("hip", "knee", "ankle", "foot"))]


def gait(phase):
    """Points of a person who walks, in body heights, at a phase of the step in radians."""
    moved = {}
    for side, sign in (("left", 1.0), ("right", -1.0)):
        swing = sign * np.sin(phase)
        x = sign * 0.055
        moved[f"{side}_knee"] = (x, 0.24, -0.07 * swing)
        moved[f"{side}_ankle"] = (x, 0.48 - 0.03 * max(swing, 0), -0.14 * swing)
        moved[f"{side}_heel"] = (x, 0.51 - 0.03 * max(swing, 0), 0.02 - 0.14 * swing)
        moved[f"{side}_foot"] = (1.2 * x, 0.51 - 0.03 * max(swing, 0), -0.10 - 0.14 * swing)
        moved[f"{side}_wrist"] = (sign * 0.14, 0.02, 0.1 * swing - 0.02)
        moved[f"{side}_elbow"] = (sign * 0.13, -0.12, 0.05 * swing)
    return moved


@pytest.fixture
def walk(skeleton):
    """Two seconds of a walk in place, seen at an angle, with reading errors of half a percent."""

    def build(yaw, num_frames=60, turn=0.0):
        random = np.random.default_rng(0)
        frames = [
            skeleton(yaw=yaw + turn * t / FPS, **gait(2 * np.pi * t / FPS))
            for t in range(num_frames)
        ]
        joints = np.concatenate(frames)
        joints[..., :2] += random.normal(0, 0.6, (*joints.shape[:2], 2))
        return joints

    return build


def exchange(joints, frames, points=None):
    """What a network does that takes front for back: sides exchanged, depth mirrored."""
    wrong = joints.copy()
    points = np.arange(33) if points is None else np.array(points)
    for frame in frames:
        wrong[frame, points] = joints[frame, OPPOSITE[points]]
        wrong[frame, points, 2] *= -1
    return wrong


@pytest.mark.parametrize("yaw", [0.0, 35.0, 180.0, 215.0])
@pytest.mark.parametrize(
    "frames",
    [range(20, 22), range(15, 40), range(8), range(50, 60), [0], [59], [5, 7, 9, 30, 31, 45]],
    ids=["two", "long", "start", "end", "first", "last", "scattered"],
)
def test_an_exchanged_body_is_put_right(walk, yaw, frames):
    joints = walk(yaw)
    mended = mend(exchange(joints, frames), np.ones(60, bool), FPS)
    assert np.flatnonzero(mended.exchanged.all(axis=1)).tolist() == list(frames)
    np.testing.assert_allclose(mended.joints, joints, atol=1e-3)


@pytest.mark.parametrize(("points", "group"), [(ARMS, 1), (LEGS, 2)], ids=["arms", "legs"])
def test_exchanged_arms_or_legs_are_put_right_alone(walk, points, group):
    joints = walk(20.0)
    mended = mend(exchange(joints, range(20, 30), points), np.ones(60, bool), FPS)
    wrong = mended.exchanged[:, group]
    assert np.flatnonzero(wrong).tolist() == list(range(20, 30))
    apart = np.abs(mended.joints - joints)[:, points, :2]
    assert apart.max() < 1e-3


@pytest.mark.parametrize("yaw", [0.0, 45.0, 90.0, 180.0, 270.0])
def test_a_right_track_is_left_alone(walk, yaw):
    joints = walk(yaw)
    mended = mend(joints, np.ones(60, bool), FPS)
    assert not mended.exchanged.any()
    assert not mended.unsure.any()
    np.testing.assert_array_equal(mended.joints, joints)


@pytest.mark.parametrize("turn", [90.0, 180.0, 360.0, -240.0])
def test_a_person_who_turns_round_is_not_taken_for_exchanged(walk, turn):
    joints = walk(0.0, turn=turn)
    assert not mend(joints, np.ones(60, bool), FPS).exchanged.any()


def test_an_exchange_across_a_gap_is_put_right(walk):
    joints = walk(0.0)
    found = np.ones(60, bool)
    found[25:33] = False
    wrong = exchange(joints, range(33, 48))
    wrong[25:33] = 0
    mended = mend(wrong, found, FPS)
    np.testing.assert_allclose(mended.joints[33:48], joints[33:48], atol=1e-3)
    assert not mended.exchanged[~found].any()


def test_misread_frames_at_the_border_of_an_exchange_do_not_hide_it(walk):
    joints = walk(0.0)
    wrong = exchange(joints, range(20, 40))
    random = np.random.default_rng(1)
    for frame in (19, 20, 39, 40):
        wrong[frame, :, :2] += random.normal(0, 8, (33, 2))
    mended = mend(wrong, np.ones(60, bool), FPS)
    np.testing.assert_allclose(mended.joints[22:38], joints[22:38], atol=1e-3)
    np.testing.assert_allclose(mended.joints[:18], joints[:18], atol=1e-3)


def test_colours_of_the_sides_decide_where_movement_cannot(walk):
    """After a second without sight the sides are exchanged to the end: half of the track."""
    joints = walk(0.0)
    found = np.ones(60, bool)
    found[26 : 56 - 26] = False
    wrong = exchange(joints, range(30, 60))
    colours = np.full((60, 3, 2, 3), np.nan, np.float32)
    red, blue = np.array([150.0, 180, 140]), np.array([90.0, 140, 70])
    colours[:, 1:, 0], colours[:, 1:, 1] = red, blue
    colours[30:, 1:, 0], colours[30:, 1:, 1] = blue, red
    mended = mend(wrong, found, FPS, colours)
    right = mended.joints[[10, 50], INDEX["left_shoulder"], 0]
    assert np.sign(right[0] - 64) == np.sign(right[1] - 64)


def test_every_name_has_its_opposite():
    assert (OPPOSITE[OPPOSITE] == np.arange(33)).all()
    assert sides.opposite("mouth_left") == "mouth_right"
    assert OPPOSITE[INDEX["nose"]] == INDEX["nose"]
