"""A video's file is written while its frames come in, whatever their order."""

import threading

import numpy as np
import pytest

from dreampose import video
from serve.backend import StoppedError
from serve.records import RenderRequest
from serve.store import Store
from serve.writing import News, write_result

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
        news.tell(len(indices))
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
