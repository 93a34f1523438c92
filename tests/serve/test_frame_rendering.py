"""Rendering, batching and cancellation in a sampler."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses import Motion
from serve.deployments import frame_rendering, prepared_request
from serve.deployments.sampler import Sampler
from serve.service.backend import StoppedError
from serve.service.records import RenderRequest
from serve.service.store import Store, VideoFolder, read_chunk


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


def render(pipe, folder, indices, **changes):
    """Renders a chunk by itself."""
    chunk = frame_rendering.Chunk(pipe=pipe, folder=folder, indices=indices, **changes)
    frame_rendering.render([chunk])()
    return chunk.seconds.result(timeout=0)


def test_frames_match_the_request(tiny_pipeline, photo_file, motion_file, accept):
    folder = accept(seed=3)
    told = frame_rendering.prepare(tiny_pipeline, folder)
    assert render(tiny_pipeline, folder, range(4, 6)) > 0
    request = generation.prepare(
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
    expected = generation.render_frames(tiny_pipeline, request, [4, 5])
    np.testing.assert_array_equal(read_chunk(path), expected)


def test_stopped_chunk_ends_after_current_model_call(tiny_pipeline, accept):
    folder, stop = accept(), Event(looks=3)
    frame_rendering.prepare(tiny_pipeline, folder)
    with pytest.raises(StoppedError):
        render(tiny_pipeline, folder, range(2), stop=stop)
    assert stop.looks == 0
    assert prepared_request.read(folder.prepared, range(2)).num_model_calls > 3
    assert folder.finished_frames() == set()


def test_frames_have_the_requested_size(tiny_pipeline, accept):
    folder = accept(size=(96, 72))
    frame_rendering.prepare(tiny_pipeline, folder)
    render(tiny_pipeline, folder, range(1))
    ((_, path),) = folder.finished_chunks()
    assert read_chunk(path).shape == (1, 96, 72, 3)
    with pytest.raises(InputError, match="aspect ratio of the frames, 64x64"):
        frame_rendering.prepare(tiny_pipeline, accept(size=(64, 64)))


@pytest.fixture
def sampler():
    """A replica without Serve; renders with the pipe that it is given as `pipe`."""

    class Bare(Sampler):
        def __init__(self):
            self.model, self.frames_at_once, self.waiting = frame_rendering, 0, []
            self.pipe = self.base = self.fault = None
            self.thread = ThreadPoolExecutor(max_workers=1)
            self.writer = ThreadPoolExecutor(max_workers=1)
            self.writing = None

        async def _pipe(self) -> Any:
            return self.pipe

    bare = Bare()
    yield bare
    bare.thread.shutdown()
    bare.writer.shutdown()


def test_cancelled_call_stops_the_render_thread(sampler, monkeypatch):
    """Serve cancels the method; the thread below it goes on unless it is told."""
    seen = []

    def render(chunks):
        (chunk,) = chunks
        seen.append((chunk.folder.id, chunk.stop))
        chunk.stop.wait(30)
        return lambda: chunk.seconds.set_result(1.0)

    monkeypatch.setattr(frame_rendering, "render", render)

    async def go():
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
        assert [name for name, _ in seen] == ["1", "3"]

    asyncio.run(go())


def waited_for(sampler, calls) -> list[Any]:
    """The answers to calls that all wait in the replica before it begins the first of them."""

    async def go():
        begin = threading.Event()
        sampler.thread.submit(begin.wait)
        tasks = [asyncio.create_task(sampler.render(str(f.path), i)) for f, i in calls]
        while len(sampler.waiting) < len(calls):
            await asyncio.sleep(0.01)
        begin.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(go())


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the chunks of every batch that is rendered."""
    seen, original = [], generation.render_requests

    def render_requests(pipe, parts, **options):
        seen.append([len(indices) for _, indices in parts])
        return original(pipe, parts, **options)

    monkeypatch.setattr(generation, "render_requests", render_requests)
    return seen


@pytest.mark.parametrize(
    ("frames_at_once", "expected"),
    [(0, [[2], [2], [1], [2], [3]]), (5, [[2, 2, 1], [2], [3]]), (4, [[2, 2], [1, 3], [2]])],
)
def test_compatible_chunks_are_batched_up_to_the_limit(
    sampler, tiny_pipeline, accept, batches, frames_at_once, expected
):
    one, two, larger = accept(seed=1), accept(seed=2), accept(size=(96, 72))
    calls = [
        (one, range(2)), (two, range(2)), (one, range(2, 3)), (larger, range(2)), (two, range(4, 7))
    ]  # fmt: skip
    for folder in (one, two, larger):
        frame_rendering.prepare(tiny_pipeline, folder)
    sampler.pipe, sampler.frames_at_once = tiny_pipeline, frames_at_once
    answers = waited_for(sampler, calls)
    assert all(seconds > 0 for seconds in answers)
    assert batches == expected
    assert sampler.waiting == []
    for folder in (one, two, larger):
        for indices, path in folder.finished_chunks():
            request = prepared_request.read(folder.prepared, indices)
            alone = generation.render_frames(tiny_pipeline, request, range(len(indices)))
            assert np.abs(read_chunk(path).astype(int) - alone).max() <= 2
    assert one.finished_frames() | two.finished_frames() == {0, 1, 2, 4, 5, 6}


def test_chunks_with_other_weights_are_not_batched(sampler, tiny_pipeline, accept):
    folder = accept()
    frame_rendering.prepare(tiny_pipeline, folder)
    chunks = [
        frame_rendering.Chunk(pipe=pipe, folder=folder, indices=range(1))
        for pipe in (tiny_pipeline, object(), tiny_pipeline)
    ]
    assert frame_rendering.select_batch(chunks[0], chunks[1:], 8) == [chunks[0], chunks[2]]


@pytest.mark.parametrize("lost", ["prepared", "folder", "memory"])
def test_chunks_of_a_failed_batch_fail_individually(
    sampler, tiny_pipeline, accept, monkeypatch, batches, lost
):
    good, bad = accept(seed=1), accept(seed=2)
    for folder in (good, bad):
        frame_rendering.prepare(tiny_pipeline, folder)
    sampler.pipe, sampler.frames_at_once = tiny_pipeline, 8
    original = generation.render_requests

    def render_requests(pipe, parts, **options):
        if lost == "folder":
            bad.remove()
        frames = original(pipe, parts, **options)
        if lost == "memory" and len(parts) > 1:
            raise MemoryError
        return frames

    monkeypatch.setattr(generation, "render_requests", render_requests)
    if lost == "prepared":
        bad.prepared.unlink()
    first, failed, last = waited_for(
        sampler, [(good, range(2)), (bad, range(2)), (good, range(2, 4))]
    )
    assert (first > 0, last > 0) == (True, True)
    assert good.finished_frames() == {0, 1, 2, 3}
    if lost == "memory":
        assert failed > 0
        assert batches == [[2, 2, 2], [2], [2], [2]]
    else:
        assert isinstance(failed, FileNotFoundError)


def test_rendering_overlaps_with_writing(sampler, tiny_pipeline, accept, monkeypatch):
    """And no more than these wait in memory where storage is slower than the model."""
    folder = accept()
    frame_rendering.prepare(tiny_pipeline, folder)
    sampler.pipe, sampler.frames_at_once = tiny_pipeline, 0
    open_again, rendered, original = threading.Event(), [], generation.render_requests

    def render_requests(pipe, parts, **options):
        frames = original(pipe, parts, **options)
        rendered.append(len(rendered))
        return frames

    def write_chunk(self, *_):
        assert open_again.wait(60)

    monkeypatch.setattr(generation, "render_requests", render_requests)
    monkeypatch.setattr(VideoFolder, "write_chunk", write_chunk)

    async def go():
        calls = [
            asyncio.create_task(sampler.render(str(folder.path), range(i, i + 1))) for i in range(4)
        ]
        while len(rendered) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert len(rendered) == 2, "the third waits until the first is written"
        assert not any(call.done() for call in calls)
        open_again.set()
        await asyncio.gather(*calls)

    asyncio.run(asyncio.wait_for(go(), 60))
    assert len(rendered) == 4


@pytest.mark.parametrize("broken", [False, True])
def test_health_check_fails_when_the_model_is_broken(
    sampler, tiny_pipeline, accept, monkeypatch, broken
):
    """One poisoned video is no reason to replace a replica; weights that cannot be read are."""
    folder = accept()
    sampler.pipe = sampler.base = tiny_pipeline
    asyncio.run(sampler.check_health())
    if broken:
        monkeypatch.setattr(frame_rendering, "check", lambda _: 1 / 0)
    (failed,) = waited_for(sampler, [(folder, range(2))])
    assert isinstance(failed, FileNotFoundError), "it was not prepared"
    sampler.thread.submit(lambda: None).result()
    if broken:
        with pytest.raises(RuntimeError, match="failed on its device"):
            asyncio.run(sampler.check_health())
    else:
        asyncio.run(sampler.check_health())


def test_batch_stops_when_all_callers_are_gone(sampler, tiny_pipeline, accept):
    folder = accept()
    frame_rendering.prepare(tiny_pipeline, folder)
    chunks = [
        frame_rendering.Chunk(pipe=tiny_pipeline, folder=folder, indices=range(i, i + 1))
        for i in range(2)
    ]
    chunks[0].stop.set()
    frame_rendering.render(chunks)()
    assert folder.finished_frames() == {0, 1}, "somebody waited for one of them"
    folder.drop_chunks()
    frame_rendering.prepare(tiny_pipeline, folder)
    chunks = [
        frame_rendering.Chunk(
            pipe=tiny_pipeline, folder=folder, indices=range(i, i + 1), stop=Event(2)
        )
        for i in range(2)
    ]
    frame_rendering.render(chunks)()
    for chunk in chunks:
        assert isinstance(chunk.seconds.exception(timeout=0), StoppedError)
    assert folder.finished_frames() == set()


@pytest.mark.parametrize(("seconds", "num_frames"), [(None, 10), (0.48, 6), (0.8, 10), (4.0, 10)])
def test_only_the_requested_seconds_are_rendered(motion_file, seconds, num_frames):
    assert frame_rendering.clip_motion(Motion.load(motion_file), seconds).num_frames == num_frames
