"""Encoding of a video while its frames arrive."""

import threading
import time

import numpy as np
import pytest

from dreampose.io import video
from serve.deployments.video_writer import POLL_SECONDS, ChunkTracker, write_result
from serve.service.backend import StoppedError
from serve.service.records import RenderRequest
from serve.service.store import Store

FPS = 12.5


@pytest.fixture
def folder(tmp_path):
    return Store(tmp_path).create(
        request=RenderRequest(), photos=[b"photo"], motion=b"motion", motion_suffix=".npz"
    )


def grey(indices):
    return np.stack([np.full((32, 32, 3), 20 * index, np.uint8) for index in indices])


def start(folder, num_frames, news):
    told = []

    def work():
        try:
            told.append(write_result(folder, num_frames, FPS, news))
        except StoppedError as error:
            told.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, told


def test_out_of_order_frames_are_written_in_order(folder):
    folder.write_chunk(range(4, 8), grey(range(4, 8)))
    news = ChunkTracker()
    thread, told = start(folder, 10, news)
    for indices in (range(8, 10), range(4)):
        assert not folder.result.exists()
        folder.write_chunk(indices, grey(indices))
        news.add(indices)
    thread.join(60)
    assert told == ["32x32"]
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(10), atol=2)


def test_storage_is_not_listed_for_reported_chunks(folder, monkeypatch):
    """Of a long video that would be a list of all its chunks for each of them."""
    listed = []
    chunks = folder.finished_chunks
    monkeypatch.setattr(folder, "finished_chunks", lambda: listed.append(1) or chunks())
    folder.write_chunk(range(3, 6), grey(range(3, 6)))
    news = ChunkTracker(num_existing=3)
    thread, told = start(folder, 12, news)
    while not listed:
        time.sleep(0.01)
    before = time.monotonic()
    for indices in (range(6, 9), range(3), range(9, 12)):
        folder.write_chunk(indices, grey(indices))
        news.add(indices)
        time.sleep(0.1)
    thread.join(60)
    assert told == ["32x32"]
    # Once to begin with and, on a machine that stands still, each second.
    assert len(listed) <= 2 + (time.monotonic() - before) / POLL_SECONDS
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(12), atol=2)


def test_unreported_chunks_are_found(folder):
    """Such as those of a renderer before, which another size of chunks had cut."""
    news = ChunkTracker()
    thread, told = start(folder, 10, news)
    for indices in (range(4), range(2, 7), range(6, 10)):
        folder.write_chunk(indices, grey(indices))
    thread.join(60)
    assert told == ["32x32"]
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(10), atol=2)


def test_closed_video_leaves_no_file(folder):
    folder.write_chunk(range(4), grey(range(4)))
    news = ChunkTracker()
    thread, told = start(folder, 10, news)
    news.close()
    thread.join(60)
    assert isinstance(told[0], StoppedError)
    assert not list(folder.path.glob("*.mp4"))
    assert not list(folder.path.glob(".*"))


def test_without_tracker_all_frames_must_exist(folder):
    folder.write_chunk(range(4), grey(range(4)))
    with pytest.raises(RuntimeError, match="only 4 of 10 frames are in storage"):
        write_result(folder, 10, FPS)
