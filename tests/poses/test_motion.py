"""Motion files: storage, validation, cutting and resampling."""

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.poses import Motion, paint
from dreampose.poses.landmarks import NAMES


@pytest.fixture
def motion(skeleton) -> Motion:
    joints = np.concatenate([skeleton(x=x) for x in (40, 50, 60, 70)])
    return Motion(
        maps=paint(joints, 80, 64),
        joints=joints,
        confidence=np.array([0.9, 0, 0.8, 0.7], np.float32),
        fps=30.0,
        source="walk.mp4",
        estimator="blazepose",
        num_filled=1,
        joint_names=NAMES,
        painted=True,
    )


def same(a: Motion, b: Motion) -> bool:
    arrays = all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("maps", "joints", "confidence")
    )
    facts = ("fps", "source", "estimator", "num_filled", "joint_names", "painted")
    return arrays and all(getattr(a, name) == getattr(b, name) for name in facts)


def test_file_gives_back_every_bit(motion, tmp_path):
    path = tmp_path / "new" / "walk.npz"
    motion.save(path)
    assert same(Motion.load(path), motion)
    assert [file.name for file in path.parent.iterdir()] == ["walk.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert file["maps"].dtype == np.uint8


@pytest.mark.parametrize("content", [b"", b"not a motion", b"PK\x03\x04 broken"])
def test_other_files_are_rejected(content, tmp_path):
    path = tmp_path / "motion.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="motion must be a file written by"):
        Motion.load(path)


def test_cut_off_missing_and_foreign_files_are_rejected(motion, tmp_path):
    path = tmp_path / "motion.npz"
    with pytest.raises(InputError, match="must be an existing file"):
        Motion.load(path)
    motion.save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="motion must be a file written by"):
        Motion.load(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(InputError, match="motion must be a file written by"):
        Motion.load(path)


def test_between_keeps_the_frames_and_counts_the_filled_ones_in_them(motion):
    part = motion.between(1, 3)
    assert part.num_frames == 2
    assert part.num_filled == 1
    np.testing.assert_array_equal(part.joints, motion.joints[1:3])
    assert motion.between(2, 4).num_filled == 0
    for start, stop in ((-1, 2), (2, 2), (0, 5)):
        with pytest.raises(InputError, match="0 <= A < B <= 4"):
            motion.between(start, stop)


def test_resampling_keeps_duration_and_speed(motion):
    double = motion.resample(60)
    assert (double.num_frames, double.fps) == (8, 60)
    hips = double.joints[:, NAMES.index("left_hip"), 0]
    np.testing.assert_allclose(np.diff(hips)[:6], 5, atol=1e-4)
    np.testing.assert_array_equal(double.maps, paint(double.joints, 80, 64))
    half = motion.resample(15)
    np.testing.assert_array_equal(half.joints, motion.joints[::2])
    assert same(motion.resample(30), motion)
    with pytest.raises(InputError, match="fps must be positive"):
        motion.resample(0)
