"""A video's file is written while its frames come in, whatever their order."""

import threading
import time

import numpy as np
import pytest

from dreampose.io import video
from serve.deployments.video_writer import LOOK_SECONDS, News, write_result
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


def test_frames_that_come_out_of_order_are_written_in_order(folder):
    folder.write_chunk(range(4, 8), grey(range(4, 8)))
    news = News()
    thread, told = start(folder, 10, news)
    for indices in (range(8, 10), range(4)):
        assert not folder.result.exists()
        folder.write_chunk(indices, grey(indices))
        news.tell(indices)
    thread.join(60)
    assert told == ["32x32"]
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(10), atol=2)


def test_storage_is_not_listed_for_chunks_that_were_told_of(folder, monkeypatch):
    """Of a long video that would be a list of all its chunks for each of them."""
    listed = []
    chunks = folder.finished_chunks
    monkeypatch.setattr(folder, "finished_chunks", lambda: listed.append(1) or chunks())
    folder.write_chunk(range(3, 6), grey(range(3, 6)))
    news = News(num_found=3)
    thread, told = start(folder, 12, news)
    while not listed:
        time.sleep(0.01)
    before = time.monotonic()
    for indices in (range(6, 9), range(3), range(9, 12)):
        folder.write_chunk(indices, grey(indices))
        news.tell(indices)
        time.sleep(0.1)
    thread.join(60)
    assert told == ["32x32"]
    # Once to begin with and, on a machine that stands still, each second.
    assert len(listed) <= 2 + (time.monotonic() - before) / LOOK_SECONDS
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(12), atol=2)


def test_chunks_that_nobody_told_of_are_found(folder):
    """Such as those of a renderer before, which another size of chunks had cut."""
    news = News()
    thread, told = start(folder, 10, news)
    for indices in (range(4), range(2, 7), range(6, 10)):
        folder.write_chunk(indices, grey(indices))
    thread.join(60)
    assert told == ["32x32"]
    shown = video.read(folder.result).frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(shown, 20 * np.arange(10), atol=2)


def test_a_video_that_is_given_up_leaves_no_file(folder):
    folder.write_chunk(range(4), grey(range(4)))
    news = News()
    thread, told = start(folder, 10, news)
    news.end()
    thread.join(60)
    assert isinstance(told[0], StoppedError)
    assert not list(folder.path.glob("*.mp4"))
    assert not list(folder.path.glob(".*"))


def test_without_anybody_to_wait_for_all_frames_must_be_there(folder):
    folder.write_chunk(range(4), grey(range(4)))
    with pytest.raises(RuntimeError, match="10 frames must be in storage, got 4"):
        write_result(folder, 10, FPS)
