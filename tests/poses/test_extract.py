"""Extraction: filled gaps, removed outliers and errors."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.poses import PoseEstimator, Track, estimator, extract, paint
from dreampose.poses.landmarks import INDEX, NAMES
from dreampose.types import Clip


@dataclass
class Scripted:
    """An estimator that says what it is told."""

    track: Track
    name: str = "scripted"

    def __call__(self, clip, *, height, width, progress=None):
        start = clip.first_frame
        cut = slice(start, start + len(clip.frames))
        return replace(
            self.track,
            joints=self.track.joints[cut],
            confidence=self.track.confidence[cut],
            found=self.track.found[cut],
            maps=None if self.track.maps is None else self.track.maps[cut],
        )


@pytest.fixture
def walk(skeleton):
    """Twenty frames of a person moving two pixels a frame to the right."""
    joints = np.concatenate([skeleton(x=30 + 2 * index) for index in range(20)])
    return Track(
        maps=None,
        joints=joints,
        confidence=np.full(20, 0.9, np.float32),
        found=np.ones(20, bool),
        joint_names=NAMES,
    )


CLIP = Clip(frames=np.zeros((20, 8, 8, 3), np.uint8), fps=10.0, source="walk.mp4")


def without(track: Track, *lost: int) -> Track:
    found = track.found.copy()
    found[list(lost)] = False
    joints = track.joints.copy()
    joints[list(lost)] = 0
    return replace(track, found=found, joints=joints)


def test_gaps_inside_are_interpolated_and_counted(walk):
    lost = (5, 6, 7, 8)
    motion = extract(CLIP, Scripted(without(walk, *lost)), height=160, width=128)
    assert motion.num_filled == 4
    assert np.flatnonzero(motion.confidence == 0).tolist() == list(lost)
    np.testing.assert_allclose(motion.joints, walk.joints, atol=1e-3)
    np.testing.assert_array_equal(motion.maps, paint(motion.joints, 160, 128))
    assert (motion.estimator, motion.source, motion.fps) == ("scripted", "walk.mp4", 10.0)


def test_gaps_at_the_ends_repeat_the_nearest_pose(walk):
    motion = extract(CLIP, Scripted(without(walk, 0, 1, 19)), height=160, width=128)
    assert motion.num_filled == 3
    np.testing.assert_array_equal(motion.joints[:3], walk.joints[[2, 2, 2]])
    np.testing.assert_array_equal(motion.joints[19], walk.joints[18])


@pytest.mark.parametrize(
    ("lost", "named"), [(range(7, 12), "7 to 11"), (range(15, 20), "15 to 19")]
)
def test_longer_gaps_are_rejected_with_their_range_and_the_limit(walk, lost, named):
    # 0.4 s at 10 frames a second are four frames; these are five.
    with pytest.raises(InputError, match=f"up to 4 frames.*5 frames.*{named}.*walk.mp4"):
        extract(CLIP, Scripted(without(walk, *lost)), height=160, width=128)
    assert extract(CLIP, Scripted(without(walk, *lost)), max_gap=0.5).num_filled == 5


def test_a_picture_without_a_person_is_rejected(walk):
    with pytest.raises(InputError, match=r"nobody in any of the 20 frames of walk\.mp4"):
        extract(CLIP, Scripted(without(walk, *range(20))), height=160, width=128)


def test_exact_maps_take_the_nearest_frame_in_gaps(walk):
    maps = np.zeros((20, 2, 16, 16), np.float32)
    maps[:] = (np.arange(20) + 1)[:, None, None, None] / 255
    track = without(replace(walk, maps=maps), 5, 6, 7)
    motion = extract(CLIP, Scripted(track), height=16, width=16)
    assert np.round(motion.maps[4:9, 0, 0, 0] * 255).tolist() == [5, 5, 5, 9, 9]
    assert not motion.painted


def test_a_point_that_jumps_for_one_frame_is_put_back(walk):
    joints = walk.joints.copy()
    joints[8, INDEX["left_wrist"], :2] += 60
    motion = extract(CLIP, Scripted(replace(walk, joints=joints)), height=160, width=128)
    np.testing.assert_allclose(motion.joints[8], walk.joints[8], atol=1e-3)
    # A point that moves fast and stays there is not touched.
    joints = walk.joints.copy()
    joints[8:, INDEX["left_wrist"], 1] -= 60
    motion = extract(CLIP, Scripted(replace(walk, joints=joints)), height=160, width=128)
    np.testing.assert_array_equal(motion.joints, joints)


def test_frames_with_shoulders_on_top_of_each_other_are_filled(walk):
    joints = walk.joints.copy()
    joints[13, :, 0] = (joints[13, :, 0] - 56) * 0.1 + 56
    motion = extract(CLIP, Scripted(replace(walk, joints=joints)), height=160, width=128)
    assert np.flatnonzero(motion.confidence == 0).tolist() == [13]
    np.testing.assert_allclose(motion.joints, walk.joints, atol=1e-3)


def test_a_person_who_turns_quickly_is_not_taken_for_misread(skeleton):
    joints = np.concatenate([skeleton(yaw=24 * index) for index in range(20)])
    track = Track(
        maps=None,
        joints=joints,
        confidence=np.ones(20, np.float32),
        found=np.ones(20, bool),
        joint_names=NAMES,
    )
    assert extract(CLIP, Scripted(track), height=160, width=128).num_filled == 0


def test_a_range_of_frames_is_cut_before_estimating(walk):
    motion = extract(CLIP, Scripted(walk), height=160, width=128, frames=(4, 9))
    np.testing.assert_array_equal(motion.joints, walk.joints[4:9])
    lost = Scripted(without(walk, *range(7, 12)))
    with pytest.raises(InputError, match="7 to 11"):
        extract(CLIP, lost, height=160, width=128, frames=(4, 20))
    with pytest.raises(InputError, match="A:B"):
        extract(CLIP, Scripted(walk), height=160, width=128, frames=(9, 21))


def test_estimators_are_chosen_by_name():
    for name in ("blazepose", "catwalk"):
        assert isinstance(estimator(name), PoseEstimator)
        assert estimator(name).name == name
    with pytest.raises(InputError, match="one of blazepose, catwalk, densepose, got 'openpose'"):
        estimator("openpose")
    with pytest.raises(InputError, match=r"must be densepose:FILE.*got 'densepose'"):
        estimator("densepose")
    with pytest.raises(InputError, match=r"existing TorchScript file, got 'none\.pt'"):
        estimator("densepose:none.pt")
    with pytest.raises(InputError, match="must be blazepose, got 'blazepose:file'"):
        estimator("blazepose:file")
    with pytest.raises(InputError, match="densepose or catwalk for maps of 3 channels"):
        estimator("blazepose", channels=3)
