"""Load of many clients, with stub samplers."""

import asyncio
import gc
import io
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from serve.api import build
from serve.deployments.renderer import Renderer
from serve.service.records import Prepared
from serve.service.store import VideoFolder

CLIENTS, QUEUE = 50, 20
STRETCHES = (100, 200, 200)
"""Jobs; what is held is measured after each. The first one warms caches and threads up."""
NUM_FRAMES, SIDE = 6, 64
PATIENCE = 1200


class Samplers:
    """Looks like a deployment handle; frames cost nothing."""

    def __init__(self):
        self.prepare = SimpleNamespace(remote=self._prepare)
        self.render = SimpleNamespace(remote=self._render)

    def options(self, **_):
        return self

    async def _prepare(self, folder):
        return Prepared(num_frames=NUM_FRAMES, fps=12.5, seconds=0.0, warnings=[])

    async def _render(self, folder, indices):
        await asyncio.sleep(0.001)
        frames = np.zeros((len(indices), SIDE, SIDE, 3), np.uint8)
        await asyncio.to_thread(VideoFolder(folder).write_chunk, indices, frames)
        return 0.001


@pytest.mark.slow
def test_fifty_clients_share_a_queue_of_twenty(start_service, tmp_path, caplog, monkeypatch):
    # pytest keeps every line that is logged.
    caplog.set_level("WARNING", "ray.serve")
    running = start_service(
        tmp_path, queue=QUEUE, videos_at_once=4, chunk_size=2, videos_per_key=100,
        posts_per_minute=10**6, requests_per_minute=10**6,
    )  # fmt: skip
    service = running.service
    renderer = Renderer(service.settings, 2, Samplers())
    monkeypatch.setattr(running.backend, "render", renderer.render)
    # Counted, not listed: what the test itself keeps must not grow.
    statuses, held = Counter(), []
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
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                break
            assert int(answer.headers["retry-after"]) >= 1
            await asyncio.sleep(0.5)
        path = f"/v1/videos/{answer.json()['id']}"
        while (state := (await client.get(path)).json())["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.5)
        assert state["status"] == "completed", state
        content = await client.get(f"{path}/content")
        statuses.update([content.status_code, (await client.delete(path)).status_code])
        assert content.content

    async def work(app):
        transport = httpx.ASGITransport(app, client=("127.0.0.1", 50000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for count in STRETCHES:
                left = iter(range(count))

                async def customer(left=left):
                    for _ in left:
                        await one_job(client)

                await asyncio.gather(*(customer() for _ in range(CLIENTS)))
                held.append(measure())

    async def go():
        app = build(service, manage=True)
        async with app.router.lifespan_context(app), asyncio.timeout(PATIENCE):
            await work(app)

    asyncio.run(go())
    assert set(statuses) == {200, 429}
    assert statuses[200] == 3 * sum(STRETCHES)
    assert max(running.metrics.gauges["dreampose_queue_depth"]) == QUEUE
    assert service.videos.ids == []
    assert not any((service.videos.tasks, service.videos.owners, renderer.running))
    assert service.videos.unfinished.total() == 0
    left = {path.name for path in service.videos.store.root.iterdir()}
    assert left <= {".workers", ".idempotency"}
    # What every job leaves behind grows in each stretch; threads that are started late do not.
    blocks, size = (
        min(after - before for before, after in pairwise(values))
        for values in zip(*held, strict=True)
    )
    # Two a job: pydantic remembers the last 16,384 short strings, the metrics every duration.
    assert blocks < 3 * STRETCHES[-1]
    assert size < 5 * 2**20
