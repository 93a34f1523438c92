"""The model of a replica: what it renders, and that it stops when nobody waits."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from dreampose import generate, video
from dreampose.errors import InputError
from dreampose.poses import Motion
from serve import model, prepared
from serve.backend import StoppedError
from serve.records import RenderRequest
from serve.sampler import Sampler
from serve.store import Store, read_chunk


class Event(threading.Event):
    """Is set after it was looked at some times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def is_set(self):
        self.looks -= 1
        return self.looks <= 0


@pytest.fixture
def accept(photo_file, motion_file, tmp_path):
    """Makes a video's folder with the photo, the motion and what else was asked."""

    def accept(**asked):
        return Store(tmp_path).create(
            request=RenderRequest(preset="fast", align=False, **asked),
            photos=[photo_file.read_bytes()],
            motion=motion_file.read_bytes(),
            motion_suffix=".npz",
        )

    return accept


def test_frames_are_those_of_the_request(tiny_pipeline, photo_file, motion_file, accept):
    folder = accept(seed=3)
    told = model.prepare(tiny_pipeline, folder)
    model.render(tiny_pipeline, folder, range(4, 6), threading.Event())
    request = generate.prepare(
        tiny_pipeline,
        [video.read_photo(photo_file)],
        Motion.load(motion_file),
        preset="fast",
        align=False,
        seed=3,
    )
    assert (told.num_frames, told.fps) == (request.num_frames, request.fps)
    ((indices, path),) = folder.finished_chunks()
    assert indices == range(4, 6)
    expected = generate.render_frames(tiny_pipeline, request, [4, 5])
    np.testing.assert_array_equal(read_chunk(path), expected)


def test_a_chunk_is_left_after_the_call_of_the_model_that_is_under_way(tiny_pipeline, accept):
    folder, stop = accept(), Event(looks=3)
    model.prepare(tiny_pipeline, folder)
    with pytest.raises(StoppedError):
        model.render(tiny_pipeline, folder, range(2), stop)
    assert stop.looks == 0
    assert prepared.read(folder.prepared, range(2)).num_model_calls > 3
    assert folder.finished_frames() == set()


def test_frames_have_the_size_that_was_asked_for(tiny_pipeline, accept):
    folder = accept(size=(96, 72))
    model.prepare(tiny_pipeline, folder)
    model.render(tiny_pipeline, folder, range(1), threading.Event())
    ((_, path),) = folder.finished_chunks()
    assert read_chunk(path).shape == (1, 96, 72, 3)
    with pytest.raises(InputError, match="aspect 64x64"):
        model.prepare(tiny_pipeline, accept(size=(64, 64)))


def test_a_sampler_whose_caller_goes_away_tells_its_thread():
    """Serve cancels the method; the thread below it goes on unless it is told."""
    seen = []

    def render(pipe, folder, indices, stop):
        seen.append((folder.id, stop))
        stop.wait(30)

    sampler = object.__new__(Sampler)
    sampler.model = SimpleNamespace(render=render)

    async def go():
        sampler.thread = ThreadPoolExecutor(max_workers=1)

        async def pipe():
            return None

        sampler._pipe = pipe
        calls = [asyncio.create_task(sampler.render(name, range(2))) for name in "123"]
        first, second, third = calls
        while not seen:
            await asyncio.sleep(0.01)
        assert not seen[0][1].is_set()
        # What waits in the replica is never begun.
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert seen[0][1].is_set()
        while len(seen) < 2:
            await asyncio.sleep(0.01)
        third.cancel()
        await asyncio.gather(third, return_exceptions=True)
        sampler.thread.shutdown()
        assert [name for name, _ in seen] == ["1", "3"]

    asyncio.run(go())
