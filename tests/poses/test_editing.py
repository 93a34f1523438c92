"""Edits change a motion as stated, and repaint its maps."""

from dataclasses import replace

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.poses import Motion, editing, paint
from dreampose.poses.landmarks import INDEX, NAMES, body_height, point

FPS = 20.0


def motion_of(joints, fps=FPS):
    joints = joints.astype(np.float32)
    return Motion(
        maps=paint(joints, 160, 128),
        joints=joints,
        confidence=np.ones(len(joints), np.float32),
        fps=fps,
        joint_names=NAMES,
        painted=True,
    )


@pytest.fixture
def sway(skeleton):
    """Two seconds of a slow sideways sway."""
    return motion_of(
        np.concatenate([skeleton(x=64 + 8 * np.sin(2 * np.pi * t / 40)) for t in range(40)])
    )


def test_smoothing_takes_out_jitter_without_delay(sway):
    random = np.random.default_rng(0)
    noise = random.normal(0, 2, sway.joints[..., :2].shape)
    joints = sway.joints.copy()
    joints[..., :2] += noise
    smoothed = editing.smooth(motion_of(joints), 0.3)
    before = np.abs(joints[..., :2] - sway.joints[..., :2]).mean()
    after = np.abs(smoothed.joints[..., :2] - sway.joints[..., :2]).mean()
    assert after < 0.5 * before
    hips, wanted = (point(m.joints, "middle_hip")[:, 0] for m in (smoothed, sway))
    shifts = range(-3, 4)
    errors = [np.abs(np.roll(hips, shift) - wanted)[4:-4].mean() for shift in shifts]
    assert shifts[int(np.argmin(errors))] == 0
    np.testing.assert_array_equal(smoothed.maps, paint(smoothed.joints, 160, 128))
    line = motion_of(sway.joints[:1].repeat(20, 0) + np.arange(20)[:, None, None] * [1, 0, 0, 0])
    np.testing.assert_allclose(editing.smooth(line, 0.3).joints, line.joints, atol=1e-3)


def test_a_loop_leads_from_its_last_frame_to_its_first(skeleton):
    drift = motion_of(np.concatenate([skeleton(x=50 + 0.5 * t) for t in range(40)]))
    looped = editing.loop(drift, 0.5)
    assert looped.num_frames == 30
    steps = np.abs(np.diff(np.concatenate([looped.joints, looped.joints[:1]])[:, 0, 0]))
    assert steps.max() < 3
    plain = np.abs(drift.joints[29, 0, 0] - drift.joints[0, 0, 0])
    assert plain > 10
    with pytest.raises(InputError, match=r"half of the motion's 2\.00 s, got 1\.5"):
        editing.loop(drift, 1.5)


def test_speed_changes_the_length_and_keeps_the_rate(sway):
    fast = editing.change_speed(sway, 2)
    assert (fast.num_frames, fast.fps) == (20, FPS)
    np.testing.assert_allclose(fast.joints[5], sway.joints[10], atol=1e-4)
    assert editing.change_speed(sway, 0.5).num_frames == 80


def test_a_mirror_image_exchanges_sides_of_picture_and_body(skeleton):
    raised = motion_of(skeleton(x=40, left_wrist=(0.3, -0.5, 0.0)))
    mirrored = editing.mirror(raised)
    assert mirrored.joints[0, INDEX["right_wrist"], 0] == pytest.approx(
        128 - raised.joints[0, INDEX["left_wrist"], 0]
    )
    silhouette = (raised.maps > 0).all(axis=1)
    seen = (mirrored.maps > 0).all(axis=1)[..., ::-1]
    assert (silhouette & seen).sum() / (silhouette | seen).sum() > 0.97
    again = editing.mirror(mirrored)
    np.testing.assert_allclose(again.joints, raised.joints, atol=1e-4)


def test_motions_are_joined_with_and_without_a_blend(sway):
    other = editing.mirror(sway)
    assert editing.join([sway, other]).num_frames == 80
    blended = editing.join([sway, other], 0.5)
    assert blended.num_frames == 70
    np.testing.assert_array_equal(blended.joints[:30], sway.joints[:30])
    np.testing.assert_array_equal(blended.joints[40:], other.joints[10:])
    slow = editing.join([sway, replace(other, fps=10.0)])
    assert (slow.num_frames, slow.fps) == (120, FPS)
    small = replace(sway, maps=sway.maps[:, :, ::2, ::2])
    with pytest.raises(InputError, match="one size and kind, got 160x128.*80x64"):
        editing.join([sway, small])


def test_limbs_take_the_lengths_of_the_photos_body(skeleton):
    walk = motion_of(np.concatenate([skeleton(x=60 + t) for t in range(5)]))
    longer = {f"{side}_{name}": (sign * 0.06, y, 0.0) for side, sign in (("left", 1), ("right", -1))
              for name, y in (("knee", 0.28), ("ankle", 0.55), ("heel", 0.58))}  # fmt: skip
    body = motion_of(skeleton(height=128, **longer))
    given = editing.retarget(walk, body)

    def share(motion):
        legs = point(motion.joints, "left_hip") - point(motion.joints, "left_ankle")
        return np.linalg.norm(legs, axis=-1) / body_height(motion.joints)

    assert share(given) == pytest.approx(np.full(5, share(body)[0]), rel=0.03)
    assert (share(walk) < 0.97 * share(body)).all()
    feet = [INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("heel", "foot")]
    floor = walk.joints[:, feet, 1].max(axis=1)
    assert given.joints[:, feet, 1].max(axis=1) == pytest.approx(floor, abs=0.5)
    np.testing.assert_allclose(editing.retarget(walk, walk).joints, walk.joints, atol=0.05)


def test_a_standing_foot_is_held_and_a_moving_one_is_not(skeleton):
    random = np.random.default_rng(0)
    frames = []
    for t in range(40):
        moved = {
            f"right_{name}": (-0.06 - 0.03 * t, 0.45, 0.0) for name in ("ankle", "heel", "foot")
        }
        frames.append(skeleton(**moved))
    joints = np.concatenate(frames)
    members = [INDEX[f"left_{name}"] for name in ("ankle", "heel", "foot")]
    joints[:, members, :2] += random.normal(0, 0.25, (40, 1, 2))
    locked = editing.lock_feet(motion_of(joints))
    assert locked.joints[5:35, members[0], 0].std() < 0.35 * joints[5:35, members[0], 0].std()
    right = INDEX["right_ankle"]
    np.testing.assert_allclose(locked.joints[:, right], joints[:, right], atol=1e-3)


def test_a_part_is_cut_out_by_time(sway):
    assert editing.trim(sway, 0.5, 1.0).num_frames == 10
    assert editing.trim(sway, 1.5).num_frames == 10
    with pytest.raises(InputError, match=r"within 2\.00 s, got 3 to 2"):
        editing.trim(sway, 3)


@pytest.mark.parametrize("edit", [
    lambda m: editing.smooth(m, 0.2), editing.mirror, lambda m: editing.loop(m, 0.2),
    editing.lock_feet, lambda m: editing.retarget(m, m),
])  # fmt: skip
def test_maps_that_cannot_be_painted_anew_are_refused(edit, sway):
    exact = replace(sway, painted=False, estimator="densepose")
    with pytest.raises(InputError, match="cannot be painted anew"):
        edit(exact)
