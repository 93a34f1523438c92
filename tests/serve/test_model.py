"""The model of a replica: what it renders, and that it stops when nobody waits."""

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from dreampose import generate, video
from dreampose.errors import InputError
from dreampose.poses import Motion
from serve import model
from serve.backend import StoppedError
from serve.sampler import Sampler


class Event(threading.Event):
    """Is set after it was looked at some times."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def is_set(self):
        self.looks -= 1
        return self.looks <= 0


def test_a_chunk_is_left_after_the_call_of_the_model_that_is_under_way(
    tiny_pipeline, photo_file, motion_file
):
    request = generate.prepare(
        tiny_pipeline,
        [video.read_photo(photo_file)],
        Motion.load(motion_file),
        preset="fast",
        align=False,
    )
    content = pickle.dumps(request)
    frames = model.render(tiny_pipeline, content, range(2), threading.Event())
    np.testing.assert_array_equal(frames, generate.render_frames(tiny_pipeline, request, [0, 1]))
    stop = Event(looks=3)
    with pytest.raises(StoppedError):
        model.render(tiny_pipeline, content, range(2), stop)
    assert stop.looks == 0
    assert request.num_model_calls > 3


def test_frames_have_the_size_that_was_asked_for(tiny_pipeline, photo_file, motion_file):
    from serve.records import RenderRequest

    request = RenderRequest(preset="fast", align=False, size=(96, 72))
    prepared = model.prepare(
        tiny_pipeline, request, [photo_file.read_bytes()], motion_file.read_bytes()
    )
    frames = model.render(tiny_pipeline, prepared.content, range(1), threading.Event())
    assert frames.shape == (1, 96, 72, 3)
    with pytest.raises(InputError, match="aspect 64x64"):
        model.prepare(
            tiny_pipeline,
            request.model_copy(update={"size": (64, 64)}),
            [photo_file.read_bytes()],
            motion_file.read_bytes(),
        )


def test_a_sampler_whose_caller_goes_away_tells_its_thread(monkeypatch):
    """Serve cancels the method; the thread below it goes on unless it is told."""
    seen = []

    def render(pipe, content, indices, stop):
        seen.append(stop)
        stop.wait(30)

    sampler = object.__new__(Sampler)
    sampler.model = SimpleNamespace(render=render)

    async def go():
        sampler.thread = ThreadPoolExecutor(max_workers=1)

        async def pipe():
            return None

        sampler._pipe = pipe
        call = asyncio.create_task(sampler.render(b"", range(2)))
        while not seen:
            await asyncio.sleep(0.01)
        assert not seen[0].is_set()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert seen[0].is_set()

    asyncio.run(go())
