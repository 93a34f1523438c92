"""Renders while processes of the service are killed."""

import os
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import ray
from ray import serve as ray_serve

from dreampose import checkpoints
from dreampose.diffusion import generation
from dreampose.io import provenance, video
from dreampose.poses import Motion
from serve import application
from serve.config import Settings
from serve.deployments.sampler import Sampler

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NUM_VIDEOS, REPEATS, CHUNK, SAMPLERS = 10, 3, 2, 2
PATIENCE = 1500
VICTIMS = (
    ("ServeReplica:chaos:Sampler", 0.05),
    ("ServeReplica:chaos:Renderer", 0.2),
    ("ServeReplica:chaos:Ingress", 0.4),
    ("ServeController", 0.6),
    ("ProxyActor", 0.8),
)
"""Part of a process's title, and the share of all frames after which it is killed."""


class CountedSampler(Sampler):
    """Notes in a file which frames of which video it has finished."""

    def __init__(self, settings, num_threads):
        super().__init__(settings, num_threads)
        self.book = Path(settings.storage).parent / "finished.txt"

    async def render(self, folder, indices):
        seconds = await super().render(folder, indices)
        with self.book.open("a") as file:
            file.write(f"{folder} {indices.start} {indices.stop}\n")
        return seconds


@pytest.fixture
def service(ray_cluster, tiny_model, tmp_path, monkeypatch):
    """Two samplers over HTTP, and the file in which they note what they have finished."""
    # The workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(application, "Sampler", CountedSampler)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    settings = Settings(
        model=str(tiny_model),
        storage=str(tmp_path / "videos"),
        motions=str(tmp_path / "motions"),
        subjects="",
        default_motion="",
        replicas=SAMPLERS,
        chunk_size=CHUNK,
        threads=1,
        max_tries=30,
    )
    ray_serve.run(application.app(settings), name="chaos")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client, tmp_path / "finished.txt"
    ray_serve.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def motion(motion_file):
    """Thirty frames: the square walks its way three times."""
    once = Motion.load(motion_file)
    whole = Motion(
        maps=np.tile(once.maps, (REPEATS, 1, 1, 1)),
        joints=np.tile(once.joints, (REPEATS, 1, 1)),
        confidence=np.tile(once.confidence, REPEATS),
        fps=once.fps,
    )
    whole.save(motion_file.with_name("long.npz"))
    return motion_file.with_name("long.npz")


def kill(title):
    """Kills one process of this test's cluster, which this process has started."""
    for process in psutil.Process().children(recursive=True):
        try:
            if any(title in part for part in process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
                return
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    raise AssertionError(f"no process is called {title}")


def persist(client, method, path, **kwargs):
    """An answer other than that of a service that is just coming back."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            answer = client.request(method, path, **kwargs)
        except httpx.TransportError:
            answer = None
        if answer is not None and answer.status_code < 500:
            return answer.raise_for_status()
        time.sleep(0.5)
    raise AssertionError(f"{path} was not answered for {PATIENCE} s")


def finished_frames(book):
    lines = book.read_text().splitlines() if book.exists() else []
    return [
        (name, frame)
        for name, start, stop in map(str.split, lines)
        for frame in range(int(start), int(stop))
    ]


def test_ten_renders_survive_killed_processes(service, tiny_model, photo_file, motion, tmp_path):
    client, book = service
    fields = {"preset": "balanced", "align": "false"}
    ids = []
    for seed in range(NUM_VIDEOS):
        files = {"input_reference": photo_file.read_bytes(), "motion": motion.read_bytes()}
        answer = client.post("/v1/videos", data={**fields, "seed": str(seed)}, files=files)
        ids.append(answer.raise_for_status().json()["id"])
    num_frames = Motion.load(motion).num_frames
    total = NUM_VIDEOS * num_frames

    until = time.monotonic() + PATIENCE
    for title, share in VICTIMS:
        while len(finished_frames(book)) < share * total:
            assert time.monotonic() < until, f"no progress before the death of {title}"
            time.sleep(0.02)
        assert len(set(finished_frames(book))) < total, f"{title} would die too late"
        kill(title)

    states = []
    for video_id in ids:
        while True:
            state = persist(client, "GET", f"/v1/videos/{video_id}").json()
            if state["status"] not in ("queued", "in_progress"):
                break
            assert time.monotonic() < until, state
            time.sleep(0.5)
        states.append(state)
    assert [state["status"] for state in states] == ["completed"] * NUM_VIDEOS, states

    pipe = checkpoints.load(tiny_model)
    for seed, video_id in enumerate(ids):
        request = generation.prepare(
            pipe, [video.read_photo(photo_file)], Motion.load(motion),
            preset="balanced", seed=seed, align=False,
        )  # fmt: skip
        chunks = [range(start, start + CHUNK) for start in range(0, num_frames, CHUNK)]
        frames = [
            frame for chunk in chunks for frame in generation.render_frames(pipe, request, chunk)
        ]
        rendered, undisturbed = tmp_path / "rendered.mp4", tmp_path / "undisturbed.mp4"
        rendered.write_bytes(persist(client, "GET", f"/v1/videos/{video_id}/content").content)
        code = provenance.verify(rendered).tags["watermark"]
        provenance.write(undisturbed, frames, request.fps, code=code)
        pictures = [video.read(path).frames for path in (rendered, undisturbed)]
        np.testing.assert_array_equal(*pictures, err_msg=f"seed {seed}")

    times = Counter(finished_frames(book))
    assert len(times) == total
    # Lost with their renderer: what each sampler was at. Lost with a sampler: what it was at, which
    # counts where it died between its note and its answer.
    assert sum(times.values()) - total <= (SAMPLERS + 1) * CHUNK
