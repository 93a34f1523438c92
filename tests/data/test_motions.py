"""Motions fitted as frames are."""

import numpy as np
import pytest

from dreampose.data import extract_motion, working_size
from dreampose.io import video
from dreampose.poses.estimators import Track
from dreampose.types import Clip


class Corner:
    """Reads the bright pixel of every frame as a joint and as a map, as estimators place them."""

    name = "corner"

    def __call__(self, clip, *, height, width, progress=None):
        from dreampose.poses.placement import Placement

        placement = Placement.fit((clip.height, clip.width), (height, width))
        maps = np.stack([frame[..., :2].transpose(2, 0, 1) / np.float32(255) for frame in clip])
        places = [np.argwhere(frame[..., 0] > 200).mean(0)[::-1] + 0.5 for frame in clip]
        joints = np.zeros((len(places), 1, 4), np.float32)
        joints[:, 0, :2], joints[..., 3] = places, 1
        return Track(
            maps=placement.warp(maps, (height, width)),
            joints=placement.move(joints),
            confidence=np.ones(len(places), np.float32),
            found=np.ones(len(places), bool),
        )


@pytest.fixture
def clip():
    frames = np.full((3, 90, 60, 3), 10, np.uint8)
    frames[:, 60:66, 40:44] = 255
    return Clip(frames=frames, fps=12.0)


@pytest.mark.parametrize("how", ["letterbox", "stretch"])
def test_poses_lie_where_the_fitted_frames_show_them(clip, how):
    motion = extract_motion(clip, Corner(), height=64, width=64, fit=how)
    assert motion.maps.shape == (3, 2, 64, 64)
    fitted = video.fit(clip.frames, 64, 64, how)
    shown = np.argwhere(fitted[1, ..., 0] > 200).mean(0)[::-1] + 0.5
    np.testing.assert_allclose(motion.joints[1, 0, :2], shown, atol=1)
    drawn = np.argwhere(motion.maps[1, 0] > 0.8).mean(0)[::-1] + 0.5
    np.testing.assert_allclose(drawn, shown, atol=1)
    assert (shown[0] > 44) == (how == "stretch"), "42 of 60 is 45 of 64 when stretched"


def test_a_reader_needs_no_clip(clip, tmp_path, tiny_recipe):
    video.write(tmp_path / "a.mp4", clip.frames, clip.fps)
    reader = video.VideoReader(tmp_path / "a.mp4")
    assert working_size(reader, tiny_recipe) == working_size(clip, tiny_recipe) == (64, 48)
    motion = extract_motion(reader, Corner(), height=64, width=48)
    small = video.read(reader, size=(64, 48))
    assert small.frames.shape == (3, 64, 48, 3)
    assert np.array_equal(small.frames, video.fit(video.read(tmp_path / "a.mp4").frames, 64, 48))
    assert motion.num_frames == 3
