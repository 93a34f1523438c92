"""The renderer with stub samplers."""

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses.motion import Motion
from serve.config import Settings
from serve.deployments.renderer import Renderer, split_into_chunks
from serve.deployments.retries import call_with_retries
from serve.service.lease import LeaseManager
from serve.service.records import Prepared, RenderRequest
from serve.service.store import Store, VideoFolder, write_atomically

NUM_FRAMES, FPS = 10, 12.5
"""Of `motion_file`."""


def frame(index):
    """A flat grey that H.264 keeps within a level or two."""
    return np.full((32, 32, 3), 20 * index, np.uint8)


class Samplers:
    """Fake deployment handle that records calls and raises given errors."""

    def __init__(self, losses=()):
        self.losses = list(losses)
        self.rendered = []
        self.subject = None
        self.hold = False
        self.cancelled = 0
        self.waiting = 0
        self.checked = 0
        self.prepare = SimpleNamespace(remote=self._prepare)
        self.ready = SimpleNamespace(remote=self._ready)
        self.render = SimpleNamespace(remote=self._render)

    def options(self, *, multiplexed_model_id=None, _by_reference=None):
        self.subject = multiplexed_model_id
        return self

    async def _prepare(self, folder):
        return Prepared(num_frames=NUM_FRAMES, fps=FPS, seconds=0.5, warnings=["a warning"])

    async def _ready(self):
        self.checked += 1

    async def _render(self, folder, indices):
        await asyncio.sleep(0)
        self.waiting += 1
        try:
            while self.hold:
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.losses:
            raise self.losses.pop(0)
        self.rendered.append(indices)
        VideoFolder(folder).write_chunk(indices, np.stack([frame(index) for index in indices]))
        return 0.25 * len(indices)


@pytest.fixture
def folder(tmp_path, motion_file):
    return Store(tmp_path / "videos").create(
        request=RenderRequest(subject="anna"),
        photos=[b"photo"],
        motion=motion_file.read_bytes(),
        motion_suffix=".npz",
    )


def served(recipe_only_model, **settings):
    subjects = recipe_only_model.parent / "subjects"
    (subjects / "anna").mkdir(parents=True, exist_ok=True)
    (subjects / "anna" / "subject.json").write_text("{}")
    return Settings(
        model=str(recipe_only_model), subjects=str(subjects), first_delay=0.001, **settings
    )


def render(folder, samplers, recipe_only_model, **settings):
    settings = served(recipe_only_model, **settings)

    async def go():
        return await Renderer(settings, 2, samplers).render(str(folder.path))

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("missing", "chunk_size", "chunks"),
    [
        (range(10), 4, [(0, 4), (4, 8), (8, 10)]),
        (range(3), 8, [(0, 3)]),
        (range(3), 1, [(0, 1), (1, 2), (2, 3)]),
        ({0, 1, 5, 6, 7, 8}, 4, [(0, 2), (5, 8), (8, 9)]),
        ((), 4, []),
    ],
)
def test_missing_frames_are_split_on_a_fixed_grid(missing, chunk_size, chunks):
    assert split_into_chunks(set(missing), chunk_size) == [range(*chunk) for chunk in chunks]


def test_video_has_all_frames_in_order_at_the_motion_rate(folder, recipe_only_model):
    samplers = Samplers()
    state = render(folder, samplers, recipe_only_model, chunk_size=4)
    assert (state.status, state.progress, state.num_frames) == ("completed", 100, NUM_FRAMES)
    assert (state.size, state.seconds, state.warnings) == ("32x32", "0.8", ["a warning"])
    clip = video.read(folder.result)
    assert clip.fps == FPS
    levels = clip.frames[:, 16, 16, 0].astype(int)
    assert np.abs(levels - 20 * np.arange(NUM_FRAMES)).max() <= 3
    assert samplers.subject.startswith("anna@")


def test_calls_to_dead_or_full_replicas_are_retried(folder, recipe_only_model):
    broken = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata()
    )
    samplers = Samplers([ActorDiedError(), BackPressureError(1, 1), broken])
    state = render(folder, samplers, recipe_only_model, chunk_size=4)
    assert state.status == "completed"
    assert sorted(chunk.start for chunk in samplers.rendered) == [0, 4, 8]


def test_video_that_crashes_replicas_fails(folder, recipe_only_model):
    state = render(folder, Samplers([ActorDiedError()] * 99), recipe_only_model, max_tries=3)
    assert state.status == "failed"
    assert state.error.code == "render_failed"
    assert not folder.result.exists()


def test_transient_errors_are_retried(folder, recipe_only_model):
    samplers = Samplers([OSError("storage stumbled"), RuntimeError("CUDA error")])
    state = render(folder, samplers, recipe_only_model, chunk_size=16)
    assert state.status == "completed"


def test_persistent_error_fails_after_three_attempts(folder, recipe_only_model):
    samplers = Samplers([RuntimeError("CUDA error")] * 9)
    state = render(folder, samplers, recipe_only_model, chunk_size=16)
    assert (state.status, state.error.code) == ("failed", "render_failed")
    assert "CUDA error" in state.error.message
    assert len(samplers.losses) == 6


def test_renderer_limits_parallel_videos(tmp_path, motion_file, recipe_only_model):
    """Health checks must be answered while videos wait."""
    settings, samplers = served(recipe_only_model, videos_at_once=2), Samplers()
    store = Store(tmp_path / "videos")

    async def go():
        renderer = Renderer(settings, 2, samplers)
        folders = [
            store.create(
                request=RenderRequest(),
                photos=[b"photo"],
                motion=motion_file.read_bytes(),
                motion_suffix=".npz",
            )
            for _ in range(5)
        ]
        samplers.hold = True
        calls = [asyncio.create_task(renderer.render(str(f.path))) for f in folders]
        while sum(f.video().status == "in_progress" for f in folders) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert [f.video().status for f in folders].count("queued") == 3
        await renderer.ready()
        samplers.hold = False
        assert {state.status for state in await asyncio.gather(*calls)} == {"completed"}

    asyncio.run(go())


def test_video_taken_over_by_another_renderer_is_completed_once(folder, recipe_only_model):
    """The first renderer misses its heartbeats: another one takes over and completes the video."""
    settings = served(recipe_only_model, chunk_size=4)

    class Stalled(Samplers):
        async def _render(self, folder, indices):
            (manager,) = first.leases.values()
            manager.beat = manager.stop
            manager.stop()
            state = await Renderer(settings, 2, others).render(folder)
            assert state.status == "completed"
            raise FileNotFoundError(VideoFolder(folder).prepared)

    others, stalled = Samplers(), Stalled()
    first = Renderer(settings, 2, stalled)

    state = asyncio.run(first.render(str(folder.path)))
    assert (state.status, state.error) == ("completed", None)
    assert folder.video() == state
    assert len(others.rendered) == 3
    assert stalled.rendered == []
    assert len(video.read(folder.result).frames) == NUM_FRAMES


def test_renderer_that_lost_its_lease_writes_no_result(folder, recipe_only_model, monkeypatch):
    monkeypatch.setattr("serve.deployments.renderer.HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr("serve.deployments.renderer.LEASE_POLL_SECONDS", 0.01)
    settings = served(recipe_only_model, chunk_size=4)
    samplers = Samplers()
    samplers.hold = True

    async def go():
        renderer = Renderer(settings, 2, samplers)
        call = asyncio.create_task(renderer.render(str(folder.path)))
        while not samplers.waiting:
            await asyncio.sleep(0.01)
        # Another worker claims the folder with a newer fencing token, as after a takeover.
        other = LeaseManager(folder.path.parent)
        other.beat()
        write_atomically(folder.path / "lease" / f"00000009.{other.worker}", b"")
        while samplers.cancelled < 3:
            await asyncio.sleep(0.01)
        assert not folder.result.exists()
        # And follows that one until it has finished the video.
        folder.update(status="completed", progress=100)
        return await call

    assert asyncio.run(go()).status == "completed"
    assert samplers.rendered == []


def test_input_errors_are_not_retried(folder, recipe_only_model):
    samplers = Samplers([InputError("photo must show a person, got none"), ActorDiedError()])
    state = render(folder, samplers, recipe_only_model, chunk_size=16)
    assert (state.status, state.error.code) == ("failed", "invalid_input")
    assert state.error.message == "photo must show a person, got none"
    assert len(samplers.losses) == 1


def test_resumed_video_renders_only_missing_frames(folder, recipe_only_model):
    folder.update(status="in_progress")
    folder.write_chunk(range(4, 8), np.stack([frame(index) for index in range(4, 8)]))
    samplers = Samplers()
    state = render(folder, samplers, recipe_only_model, chunk_size=4)
    assert [(chunk.start, chunk.stop) for chunk in samplers.rendered] == [(0, 4), (8, 10)]
    assert state.num_frames_rendered == 6
    assert len(video.read(folder.result).frames) == NUM_FRAMES


def test_damaged_chunk_is_rendered_again(folder, recipe_only_model):
    for start in (0, 4):
        indices = range(start, start + 4)
        folder.write_chunk(indices, np.stack([frame(index) for index in indices]))
    _, torn = (path for _, path in folder.finished_chunks())
    torn.write_bytes(torn.read_bytes()[:100])
    samplers = Samplers()
    state = render(folder, samplers, recipe_only_model, chunk_size=4)
    assert (state.status, state.error) == ("completed", None)
    assert [(chunk.start, chunk.stop) for chunk in samplers.rendered] == [(4, 8), (8, 10)]
    assert len(video.read(folder.result).frames) == NUM_FRAMES


def test_second_call_joins_the_first(folder, recipe_only_model):
    samplers = Samplers()
    settings = served(recipe_only_model, chunk_size=4)

    async def twice():
        renderer = Renderer(settings, 2, samplers)
        return await asyncio.gather(*(renderer.render(str(folder.path)) for _ in range(2)))

    first, second = asyncio.run(twice())
    assert first == second
    assert len(samplers.rendered) == 3


class Extractors:
    """Fake handle of the extractor deployment."""

    def __init__(self):
        self.uploads, self.targets = [], []
        self.extract = SimpleNamespace(remote=self._extract)

    async def _extract(self, upload, target, estimator):
        self.uploads.append(Path(upload).read_bytes())
        self.targets.append(Path(target).name)
        maps = np.zeros((NUM_FRAMES, 2, 64, 48), np.float32)
        joints, confidence = np.zeros((NUM_FRAMES, 3, 4), np.float32), np.ones(NUM_FRAMES)
        Motion(maps=maps, joints=joints, confidence=confidence.astype(np.float32), fps=FPS).save(
            target
        )


@pytest.mark.parametrize(("calls_per_sampler", "num_called"), [(1, 2), (2, 4), (3, 5)])
def test_deleting_a_video_cancels_its_calls(
    folder, recipe_only_model, calls_per_sampler, num_called
):
    samplers = Samplers()
    samplers.hold = True
    settings = served(recipe_only_model, chunk_size=2, calls_per_sampler=calls_per_sampler)

    async def go():
        renderer = Renderer(settings, 2, samplers)
        call = asyncio.create_task(renderer.render(str(folder.path)))
        while folder.video().num_frames is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        folder.mark_deleted()
        state = await asyncio.wait_for(call, 30)
        return state, renderer.running

    state, running = asyncio.run(go())
    assert state.status == "cancelled"
    # Of five chunks each of two samplers held so many; none is waited for or tried again.
    assert samplers.cancelled == num_called
    assert samplers.rendered == []
    assert running == {}


def test_cancellation_reaches_the_replica():
    class Response:
        """Like Serve's: the call goes on unless `cancel` is called."""

        cancelled = False

        def __await__(self):
            return asyncio.sleep(3600).__await__()

        def cancel(self):
            self.cancelled = True

    response = Response()

    async def go():
        call = asyncio.create_task(
            call_with_retries(lambda: response, what="x", max_tries=3, first_delay=0.001)
        )
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(go())
    assert response.cancelled


def test_slow_video_times_out(folder, recipe_only_model):
    request = folder.request().model_copy(update={"timeout_s": 0.01})
    write_atomically(folder.path / "request.json", request.model_dump_json().encode())
    samplers = Samplers()
    samplers.hold = True
    state = render(folder, samplers, recipe_only_model, chunk_size=4)
    assert (state.status, state.error.code) == ("failed", "timed_out")
    assert samplers.cancelled == 3


def test_acceptance_warnings_are_kept(folder, recipe_only_model):
    request = folder.request().model_copy(update={"notes": ["prompt is ignored"]})
    write_atomically(folder.path / "request.json", request.model_dump_json().encode())
    state = render(folder, Samplers(), recipe_only_model)
    assert state.warnings == ["prompt is ignored", "a warning"]


def test_same_upload_is_extracted_once(tmp_path, recipe_only_model):
    extractors = Extractors()
    settings = served(recipe_only_model, motions=str(tmp_path / "motions"))
    store = Store(tmp_path / "videos")

    async def go():
        renderer = Renderer(settings, 2, Samplers(), extractors)
        states = []
        for content, size in (
            (b"walk", None),
            (b"walk", None),
            (b"turn", None),
            (b"turn", (64, 64)),
        ):
            folder = store.create(
                request=RenderRequest(size=size),
                photos=[b"photo"],
                motion=content,
                motion_suffix=".mp4",
            )
            states.append(await renderer.render(str(folder.path)))
            assert Motion.load(folder.motion).num_frames == NUM_FRAMES
        return states

    assert {state.status for state in asyncio.run(go())} == {"completed"}
    assert extractors.uploads == [b"walk", b"turn", b"turn"]
    assert [target.partition("-")[0] for target in extractors.targets] == [
        "64x48", "64x48", "64x64"
    ]  # fmt: skip


def test_serve_handles_support_direct_calls():
    """The option is not public yet."""
    assert "_by_reference" in inspect.signature(DeploymentHandle.options).parameters


def test_readiness_probe_is_skipped_after_recent_rendering(folder, recipe_only_model):
    samplers = Samplers()
    settings = served(recipe_only_model)

    async def go():
        renderer = Renderer(settings, 2, samplers)
        await renderer.ready()
        assert samplers.checked == 1
        await renderer.render(str(folder.path))
        await renderer.ready()
        assert samplers.checked == 1

    asyncio.run(go())


def test_metrics_are_recorded(folder, recipe_only_model, recording_metrics):
    metrics = recording_metrics()
    settings = served(recipe_only_model, chunk_size=4)

    async def go():
        renderer = Renderer(settings, 2, Samplers([ActorDiedError()]))
        renderer.metrics = metrics
        return await renderer.render(str(folder.path))

    asyncio.run(go())
    assert metrics.counts["dreampose_frames",] == NUM_FRAMES
    assert metrics.counts["dreampose_retries", "ActorDiedError"] == 1
    # What samplers say that it took, not what was waited for them.
    assert metrics.values["dreampose_seconds_per_frame", "render"] == [0.25] * 3
    assert metrics.values["dreampose_seconds_per_frame", "prepare"] == [0.5 / NUM_FRAMES]
    assert len(metrics.values["dreampose_seconds_per_frame", "encode"]) == 1
