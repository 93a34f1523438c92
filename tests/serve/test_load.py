"""Many clients at once: each is answered, none hangs, and nothing of a job stays behind.

Interface, desk and renderer are the real ones; the samplers alone are stubs.
"""

import asyncio
import gc
import io
import sys
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from serve import renderer as renderer_module
from serve.http import build
from serve.records import Prepared
from serve.renderer import Renderer

CLIENTS, QUEUE, JOBS, WARM = 50, 20, 400, 100
NUM_FRAMES, SIDE = 6, 64
PATIENCE = 550


class Samplers:
    """Looks like a deployment handle; frames cost nothing."""

    def __init__(self):
        self.prepare = SimpleNamespace(remote=self._prepare)
        self.render = SimpleNamespace(remote=self._render)

    def options(self, **_):
        return self

    async def _prepare(self, request, photos, motion):
        return Prepared(content=bytes(2**16), num_frames=NUM_FRAMES, fps=12.5, warnings=[])

    async def _render(self, reference, indices):
        await asyncio.sleep(0.001)
        return np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)


@pytest.mark.slow
def test_fifty_clients_and_a_queue_of_twenty(start_service, tmp_path, caplog, monkeypatch):
    # pytest keeps every line that is logged.
    caplog.set_level("WARNING", "ray.serve")
    monkeypatch.setattr(renderer_module.ray, "put", lambda value: value)
    running = start_service(
        tmp_path, queue=QUEUE, videos_at_once=4, chunk_size=2, videos_per_key=JOBS,
        posts_per_minute=10**6, requests_per_minute=10**6,
    )  # fmt: skip
    service = running.service
    renderer = Renderer(service.settings, 2, Samplers())
    monkeypatch.setattr(running.backend, "render", renderer.render)
    statuses, held = [], {}
    photo = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(photo, format="PNG")

    def measure():
        """Python objects, and bytes of the process, arrays and C libraries included."""
        gc.collect()
        return sys.getallocatedblocks(), psutil.Process().memory_info().rss

    async def one_job(client):
        """Posts until there is room, polls, downloads, deletes."""
        while True:
            answer = await client.post(
                "/v1/videos", files={"input_reference": ("x", photo.getvalue())}
            )
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                break
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.5)
        path = f"/v1/videos/{answer.json()['id']}"
        while (state := (await client.get(path)).json())["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.5)
        assert state["status"] == "completed", state
        content = await client.get(f"{path}/content")
        statuses.extend([content.status_code, (await client.delete(path)).status_code])
        assert content.content

    async def work(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for name, count in (("warm", WARM), ("all", JOBS)):
                left = iter(range(count))

                async def customer(left=left):
                    for _ in left:
                        await one_job(client)

                await asyncio.gather(*(customer() for _ in range(CLIENTS)))
                held[name] = measure()

    async def go():
        app = build(service, manage=True)
        async with app.router.lifespan_context(app), asyncio.timeout(PATIENCE):
            await work(app)

    asyncio.run(go())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == 3 * (WARM + JOBS)
    assert max(running.tally.gauges["dreampose_queue_depth"]) == QUEUE
    assert service.desk.ids == []
    assert not any((service.desk.tasks, service.desk.owners, renderer.running))
    assert service.desk.unfinished.total() == 0
    assert not list(service.desk.store.root.iterdir())
    blocks, size = (after - before for before, after in zip(held["warm"], held["all"], strict=True))
    # One object that every job leaves behind would be as many as jobs; a frame of each, 6 MB.
    assert blocks < JOBS
    assert size < 5 * 2**20
