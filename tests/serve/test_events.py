"""Event streams of videos."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from serve.api.events import follow


def parsed(text):
    """Names and data of the events of a stream."""
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    return [
        (block[0].removeprefix("event: "), json.loads(block[1].removeprefix("data: ")))
        for block in lines
    ]


def plain(event):
    """Name and JSON data of an event."""
    data = event.data if isinstance(event.data, dict) else event.data.model_dump(mode="json")
    return event.event, data


def test_events_report_progress_frames_and_end(running, post, eventually):
    running.backend.hold = True
    video_id = post(running.client).json()["id"]
    folder = running.service.videos.store.folder(video_id)
    eventually(lambda: folder.video().progress == 40)

    async def watch():
        events = []
        async for event in follow(running.service.videos, folder, frames=True):
            events.append(plain(event))
            if events[-1][0] == "progress" and events[-1][1]["progress"] == 40:
                running.backend.hold = False
        return events

    events = running.client.portal.call(watch)
    names = [name for name, _ in events]
    assert names[-1] == "completed"
    end = events[-1][1]
    assert end["progress"] == 100
    assert end["expires_at"] == end["completed_at"] + 7 * 24 * 3600
    assert "progress" in names
    frames = [data for name, data in events if name == "frame"]
    assert [frame["index"] for frame in frames] == list(range(10)), "each once, the last ones too"
    picture = base64.b64decode(frames[0]["image"].partition(",")[2])
    with Image.open(io.BytesIO(picture)) as image:
        assert (image.format, image.size) == ("JPEG", (48, 64))
        assert abs(image.getpixel((20, 20))[0] - 80) <= 3


def test_finished_video_sends_one_event(running, post, finished):
    video_id = post(running.client).json()["id"]
    finished(running.client, f"/v1/videos/{video_id}")
    answer = running.client.get(f"/v1/videos/{video_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    ((name, data),) = parsed(answer.text)
    assert (name, data["id"], data["status"]) == ("completed", video_id, "completed")


def test_deleting_a_video_ends_its_streams(running, post):
    running.backend.hold = True
    queue = running.service.videos
    folder = queue.store.folder(post(running.client).json()["id"])

    async def watch():
        events = []
        async for event in follow(queue, folder, frames=False):
            events.append(plain(event))
            folder.mark_deleted()
        return events

    events = running.client.portal.call(watch)
    assert [name for name, _ in events] == ["progress", "cancelled"]
    assert events[-1][1]["status"] == "cancelled"


@pytest.mark.parametrize("streams", [1, 2])
def test_disconnected_client_releases_its_stream(make_service, post, streams):
    running = make_service(streams_per_key=streams)
    running.backend.hold = True
    video_id = post(running.client).json()["id"]
    path = f"/v1/videos/{video_id}/events"
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(),
        "query_string": b"frames=false", "root_path": "", "scheme": "http",
        "http_version": "1.1", "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip

    class Client:
        """Sends a request and leaves when it has read something."""

        def __init__(self):
            self.read, self.left, self.status = asyncio.Event(), asyncio.Event(), None
            self.asked = False

        async def receive(self):
            if not self.asked:
                self.asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(self, message):
            self.status = message.get("status", self.status)
            if message.get("body"):
                self.read.set()

    async def come_and_go():
        held = running.service.streams_per_key.held
        clients = [Client() for _ in range(streams)]
        tasks = [
            asyncio.create_task(running.app(dict(scope), client.receive, client.send))
            for client in clients
        ]
        for client in clients:
            await client.read.wait()
        assert held == {"": streams}
        late = Client()
        await running.app(dict(scope), late.receive, late.send)
        assert late.status == 429
        for client in clients:
            client.left.set()
        await asyncio.gather(*tasks)
        assert held == {}

        async def broken(_):
            raise OSError("the connection is gone")

        lost = Client()
        with pytest.raises((OSError, ExceptionGroup)):
            await running.app(dict(scope), lost.receive, broken)
        assert held == {}

    running.client.portal.call(come_and_go)
