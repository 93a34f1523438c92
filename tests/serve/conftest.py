"""Fixtures of the service tests."""

import asyncio
import contextlib
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from dreampose.io import video
from dreampose.io.paths import new_file, place
from dreampose.poses import Motion
from serve.api import build
from serve.config import Settings
from serve.deployments.video_writer import write_result
from serve.service.service import Service
from serve.service.store import VideoFolder
from serve.service.subject_library import SubjectFolder

NUM_FRAMES, FPS = 10, 12.5
HERE = ("127.0.0.1", 50000)
PATIENCE = 300
"""Seconds to wait for something that takes milliseconds on an idle machine."""


def walking_square(num_frames=NUM_FRAMES, height=64, width=48, fps=FPS):
    """A motion of a square that moves to the right."""
    maps = np.zeros((num_frames, 2, height, width), np.float32)
    for index in range(num_frames):
        maps[index, :, height // 4 : -height // 4, index : index + width // 3] = 0.5
    return Motion(
        maps=maps,
        joints=np.zeros((num_frames, 3, 4), np.float32),
        confidence=np.ones(num_frames, np.float32),
        fps=fps,
    )


@pytest.fixture
def motion_file(tmp_path):
    """A motion of ten frames at 12.5 frames per second."""
    walking_square().save(tmp_path / "motion.npz")
    return tmp_path / "motion.npz"


@pytest.fixture
def photo_file(tmp_path):
    """An image of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class FakeBackend:
    """Backend that works in this process and records its calls.

    hold: blocks all calls while true.
    """

    def __init__(self):
        self.hold = False
        self.broken = None
        self.calls = []
        self.at_once = self.most_at_once = 0

    def asked(self, kind):
        return [call for name, call in self.calls if name == kind]

    async def _held(self, until=lambda: False):
        while self.hold and not until():
            await asyncio.sleep(0.01)
        if self.broken:
            raise self.broken

    async def render(self, path):
        folder = VideoFolder(path)
        self.calls.append(("render", folder.id))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            frames = np.full((NUM_FRAMES, 64, 48, 3), 80, np.uint8)
            folder.update(status="in_progress", num_frames=NUM_FRAMES)
            folder.write_chunk(range(4), frames[:4])
            folder.update(progress=40, num_frames_rendered=4)
            await self._held(folder.is_deleted)
            if folder.is_deleted():
                return folder.video().model_copy(update={"status": "cancelled"})
            folder.write_chunk(range(4, NUM_FRAMES), frames[4:])
            write_result(folder, NUM_FRAMES, FPS)
            folder.drop_chunks()
            return folder.update(status="completed", progress=100, completed_at=int(time.time()))
        finally:
            self.at_once -= 1

    async def extract(self, upload, target, estimator):
        self.calls.append(("extract", place(upload).read_bytes()))
        await self._held()
        with new_file(place(target)) as part:
            walking_square().save(part)

    async def finetune(self, path):
        job = SubjectFolder(path)
        self.calls.append(("finetune", job.id))
        job.update(progress=50)
        await self._held()
        job.weights.mkdir()
        (job.weights / "subject.json").write_text("{}")

    async def ready(self):
        if self.broken:
            raise self.broken


class RecordingMetrics:
    """Metrics sink that records all values."""

    def __init__(self):
        self.counts, self.gauges, self.values = {}, {}, {}

    def count(self, name, value=1, **tags):
        key = (name, *tags.values())
        self.counts[key] = self.counts.get(key, 0) + value

    def gauge(self, name, value):
        self.gauges.setdefault(name, []).append(value)

    def observe(self, name, value, **tags):
        self.values.setdefault((name, *tags.values()), []).append(value)


@pytest.fixture
def recording_metrics():
    """`RecordingMetrics`, for tests that cannot import this file."""
    return RecordingMetrics


def start(folder, model, **settings):
    """API of a service in a folder with a fake backend.

    Returns `client` (loopback), `service`, `backend`, `metrics`, and `app` for other clients.
    """
    walking_square().save(folder / "default.npz")
    defaults = {
        "model": str(model),
        "storage": str(folder / "videos"),
        "motions": str(folder / "motions"),
        "subjects": str(folder / "subjects"),
        "default_motion": str(folder / "default.npz"),
    }
    backend, metrics = FakeBackend(), RecordingMetrics()
    service = Service(Settings(**(defaults | settings)), backend, metrics)
    app = build(service, manage=True)
    client = TestClient(app, base_url="http://127.0.0.1:8000", client=HERE)
    return SimpleNamespace(
        client=client, service=service, backend=backend, metrics=metrics, app=app
    )


@pytest.fixture(scope="session")
def start_service(recipe_only_model):
    """`start`, for tests that open the application themselves."""

    def make(folder, **settings):
        return start(folder, recipe_only_model, **settings)

    return make


@pytest.fixture
def make_service(recipe_only_model, tmp_path):
    """Starts services in one folder, and stops them."""
    with contextlib.ExitStack() as opened:

        def make(**settings):
            running = start(tmp_path, recipe_only_model, **settings)
            opened.enter_context(running.client)
            return running

        yield make


@pytest.fixture(scope="module")
def shared(recipe_only_model, tmp_path_factory):
    """One service for all tests of a module that do not change state."""
    running = start(tmp_path_factory.mktemp("shared"), recipe_only_model, posts_per_minute=10**6)
    with running.client:
        yield running


@pytest.fixture
def running(make_service):
    """A service with the usual settings."""
    return make_service()


@pytest.fixture
def motion_video(tmp_path):
    """A video of ten frames without a person."""
    path = tmp_path / "motion.mp4"
    frames = np.zeros((NUM_FRAMES, 64, 48, 3), np.uint8)
    frames[:, 10:50, 10:30] = 200
    video.write(path, frames, FPS)
    return path


@pytest.fixture
def post(photo_file):
    """Posts a video request with a photo and further fields."""

    def send(client, *, photos=1, motion=None, headers=None, **fields):
        files = [("input_reference", ("x", photo_file.read_bytes())) for _ in range(photos)]
        if motion is not None:
            files.append(("motion", ("x", Path(motion).read_bytes())))
        return client.post("/v1/videos", data=fields, files=files, headers=headers)

    return send


def wait_until(condition):
    """Waits until a condition is true and returns its value."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"not true after {PATIENCE} s")


@pytest.fixture
def finished():
    """Waits until a video, motion or subject is finished and returns its object."""

    def wait(client, path):
        def ended():
            state = client.get(path).raise_for_status().json()
            return state if state["status"] not in ("queued", "in_progress") else None

        return wait_until(ended)

    return wait


@pytest.fixture
def eventually():
    """`wait_until`, for tests that cannot import this file."""
    return wait_until
