"""Pose extraction in a replica."""

import asyncio
import threading

import pytest

from dreampose import poses
from dreampose.errors import InputError
from dreampose.poses import Motion
from serve.deployments.extractor import Extractor, extract
from serve.service.backend import StoppedError


class Reader:
    """A pose estimator that takes its time."""

    name = "slow"

    def __init__(self, motion):
        self.motion, self.frames, self.go = motion, [], threading.Event()

    def extract(self, upload, estimator, *, height, width, progress):
        for index in range(self.motion.num_frames):
            self.frames.append(index)
            if index == 3:
                self.go.wait(30)
            progress(1)
        return self.motion


@pytest.fixture
def reader(motion_file, monkeypatch):
    made = Reader(Motion.load(motion_file))
    monkeypatch.setattr(poses, "extract", made.extract)
    return made


def test_poses_are_written_under_their_frame_size(reader, tmp_path):
    reader.go.set()
    target = tmp_path / "motions" / "64x48-blazepose.npz"
    asyncio.run(Extractor().extract(str(tmp_path / "walk.mp4"), str(target), "blazepose"))
    assert Motion.load(target).num_frames == 10
    asyncio.run(Extractor().extract(str(tmp_path / "walk.mp4"), str(target), "blazepose"))
    assert len(reader.frames) == 10


def test_cancelled_extraction_stops_within_a_frame(reader, tmp_path):
    target = tmp_path / "64x48-blazepose.npz"

    async def go():
        extractor = Extractor()
        call = asyncio.create_task(
            extractor.extract(str(tmp_path / "walk.mp4"), str(target), "blazepose")
        )
        while len(reader.frames) < 4:
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        reader.go.set()
        extractor.thread.shutdown(wait=True)

    asyncio.run(go())
    assert reader.frames == [0, 1, 2, 3]
    assert not target.exists()


def test_video_without_person_is_reported(motion_video, tmp_path):
    with pytest.raises(InputError, match="video must show a person.*of the upload$"):
        extract(motion_video, tmp_path / "64x48-blazepose.npz", "blazepose", threading.Event())
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        extract(motion_video, tmp_path / "64x48-blazepose.npz", "blazepose", stop)
