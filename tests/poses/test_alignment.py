"""Alignment of motions to photos."""

import numpy as np
import pytest

from dreampose.poses import Body, Motion, align, frame_person, measure, paint
from dreampose.poses.landmarks import INDEX, NAMES, point


def painted(joints, height=160, width=128, fps=30.0) -> Motion:
    return Motion(
        maps=paint(joints, height, width),
        joints=joints,
        confidence=np.ones(len(joints), np.float32),
        fps=fps,
        estimator="blazepose",
        joint_names=NAMES,
        painted=True,
    )


@pytest.fixture
def marching(skeleton):
    """A small person stepping on the spot, swaying two pixels to either side."""
    frames = []
    for index in range(40):
        lift = 0.08 * max(0.0, np.sin(index / 3))
        frames.append(
            skeleton(
                height=80,
                x=50 + 2 * np.sin(index / 3),
                hip_y=70,
                left_ankle=(0.06, 0.48 - lift, 0.0),
                left_heel=(0.06, 0.51 - lift, 0.02),
                left_foot=(0.07, 0.51 - lift, -0.1),
            )
        )
    return painted(np.concatenate(frames))


def test_height_floor_and_middle_become_the_photos(marching, skeleton):
    photo = painted(skeleton(height=130, x=70, hip_y=85))
    aligned = align(marching, photo)
    body, target = measure(aligned), measure(photo)
    assert body.height == pytest.approx(target.height, rel=0.02)
    assert body.floor == pytest.approx(target.floor, abs=0.5)
    assert body.center == pytest.approx(target.center, abs=1.0)
    np.testing.assert_array_equal(aligned.maps, paint(aligned.joints, 160, 128))
    # The sway and the lifted foot are scaled, not lost.
    scale = 130 / 80
    for name, axis in (("left_hip", 0), ("left_foot", 1)):
        before, after = (m.joints[:, INDEX[name], axis] for m in (marching, aligned))
        assert np.ptp(after) == pytest.approx(scale * np.ptp(before), rel=0.03)


def test_a_motion_of_the_photos_own_person_stays_where_it_is(marching):
    aligned = align(marching, marching.between(0, 1))
    assert np.abs(aligned.joints - marching.joints)[..., :2].mean() < 1.5


def test_a_crouch_does_not_count_as_a_smaller_body(skeleton):
    bent = skeleton(
        hip_y=110, left_knee=(0.06, 0.12, -0.2), right_knee=(-0.06, 0.12, -0.2),
        left_ankle=(0.06, 0.24, 0), right_ankle=(-0.06, 0.24, 0), left_foot=(0.07, 0.27, -0.1),
        right_foot=(-0.07, 0.27, -0.1), left_heel=(0.06, 0.27, 0), right_heel=(-0.06, 0.27, 0),
    )  # fmt: skip
    standing = skeleton()
    motion = painted(np.concatenate([bent] * 8 + [standing] * 3))
    aligned = align(motion, painted(standing))
    assert aligned.joints[-1] == pytest.approx(standing[0], abs=3)


def test_size_of_the_photo_decides_the_size_of_the_maps(marching, skeleton):
    photo = painted(skeleton(height=260, x=130, hip_y=170), 320, 256)
    aligned = align(marching, photo)
    assert aligned.maps.shape[2:] == (320, 256)
    assert measure(aligned).height == pytest.approx(measure(photo).height, rel=0.02)


def crossing(skeleton, speed, count=60):
    """Walks through the picture to the left, `speed` pixels a frame."""
    return painted(np.concatenate([skeleton(height=60, x=150 - speed * i) for i in range(count)]))


def test_who_walks_through_the_picture_is_followed(skeleton):
    photo = painted(skeleton(height=120, x=60))
    center = measure(photo).center
    followed = align(crossing(skeleton, 2.0), photo)
    path = point(followed.joints, "middle_hip")[:, 0]
    assert np.abs(path - center).max() < 2
    kept = align(crossing(skeleton, 2.0), photo, follow=False)
    assert np.ptp(point(kept.joints, "middle_hip")[:, 0]) == pytest.approx(2 * 59 * 2, rel=0.05)


def test_who_sways_is_not_followed_unless_asked(skeleton):
    photo = painted(skeleton(height=60))
    slow = crossing(skeleton, 0.25)
    assert np.ptp(point(align(slow, photo).joints, "middle_hip")[:, 0]) > 10
    followed = align(slow, photo, follow=True)
    assert np.ptp(point(followed.joints, "middle_hip")[:, 0]) < 1


def test_exact_maps_are_warped_without_new_values():
    maps = np.zeros((3, 2, 40, 32), np.float32)
    rng = np.random.default_rng(0)
    values = rng.integers(1, 256, (2, 20, 8)) / 255
    for index in range(3):
        maps[index, :, 10:30, 12:20] = values
    motion = Motion(
        maps=maps,
        joints=np.zeros((3, 0, 4), np.float32),
        confidence=np.ones(3, np.float32),
        fps=10.0,
    )
    aligned = align(motion, Body(height=30, floor=38, center=10))
    person = aligned.maps[0, 0] > 0
    rows, columns = np.flatnonzero(person.any(axis=1)), np.flatnonzero(person.any(axis=0))
    assert (rows[0], rows[-1]) == (8, 37)
    assert columns.mean() == pytest.approx(9.5, abs=0.6)
    assert np.isin(aligned.maps[0].round(4), maps[0].round(4)).all()


def test_framing_puts_the_person_in_the_middle(skeleton):
    framed = frame_person(crossing(skeleton, 2.0))
    body = measure(framed)
    assert body.height == pytest.approx(128, rel=0.01)
    assert body.floor == pytest.approx(0.94 * 160, abs=0.5)
    assert body.center == pytest.approx(64, abs=1)
    assert (framed.maps > 0).any(axis=(1, 2, 3)).all()
