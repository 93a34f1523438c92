"""Videos and motions in object storage."""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from dreampose.io import video
from dreampose.io.paths import on_disk, place
from serve.api.events import follow
from serve.deployments import frame_rendering
from serve.deployments.renderer import Renderer
from serve.service.records import RenderRequest
from serve.service.store import Store, read_chunk


@pytest.fixture
def where(bucket, tmp_path):
    return f"{bucket}/{tmp_path.name}"


@pytest.fixture
def settings(where):
    return {"storage": f"{where}/videos", "motions": f"{where}/motions"}


def files(where):
    """Everything in a folder, but for what stands for empty folders."""
    patterns = ("/".join("*" * depth) for depth in range(1, 5))
    found = [path for pattern in patterns for path in place(where).glob(pattern)]
    names = [str(path) for path in found if path.is_file()]
    # Heartbeats outlast the work that they belong to.
    return [name for name in names if "/.workers/" not in name]


def test_video_lifecycle_in_a_bucket(make_service, settings, post, finished, eventually, where):
    running = make_service(**settings)
    client = running.client
    assert client.get("/healthz").status_code == 200
    running.backend.hold = True
    url = f"/v1/videos/{post(client).raise_for_status().json()['id']}"
    eventually(lambda: client.get(url).json()["progress"] == 40)

    async def first_events():
        queue = running.service.videos
        events = follow(queue, queue.store.folder(url.rpartition("/")[2]), frames=True)
        return [await anext(events) for _ in range(5)]

    names = [event.event for event in client.portal.call(first_events)]
    assert names == ["frame"] * 4 + ["progress"]
    running.backend.hold = False
    assert finished(client, url)["status"] == "completed"

    whole = client.get(f"{url}/content")
    assert whole.headers["content-type"] == "video/mp4"
    part = client.get(f"{url}/content", headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, whole.content[4:12])
    for variant, kind in (("thumbnail", "WEBP"), ("spritesheet", "JPEG")):
        picture = client.get(f"{url}/content", params={"variant": variant})
        with Image.open(io.BytesIO(picture.content)) as image:
            assert image.format == kind

    later = make_service(**settings)
    assert later.client.get("/v1/videos").json()["data"][0]["status"] == "completed"
    assert later.client.get(f"{url}/content").content == whole.content
    assert client.delete(url).status_code == 200
    assert client.get(url).status_code == 404
    assert files(where) == []


def test_unfinished_video_is_resumed_and_cancelled(make_service, settings, post, eventually, where):
    first = make_service(**settings)
    first.backend.hold = True
    url = f"/v1/videos/{post(first.client).json()['id']}"
    eventually(lambda: first.client.get(url).json()["progress"] == 40)

    second = make_service(**settings)
    second.backend.hold = True
    eventually(lambda: second.backend.asked("render") == [url.rpartition("/")[2]])
    assert second.client.delete(url).status_code == 200
    eventually(lambda: files(where) == [])
    assert second.client.get(url).status_code == 404


def test_motion_lifecycle_in_a_bucket(
    make_service, settings, motion_video, photo_file, finished, where
):
    running = make_service(**settings)
    client = running.client
    motion = client.post("/v1/motions", files={"file": motion_video.read_bytes()}).json()
    url = f"/v1/motions/{motion['id']}"
    assert finished(client, url)["status"] == "completed"
    assert len(running.backend.asked("extract")) == 1
    preview = client.get(f"{url}/preview")
    assert preview.headers["content-type"] == "video/mp4"
    assert len(preview.content) > 1000
    answer = client.post(
        "/v1/videos",
        files={"input_reference": photo_file.read_bytes()},
        data={"motion": motion["id"]},
    )
    assert finished(client, f"/v1/videos/{answer.json()['id']}")["status"] == "completed"
    assert client.get("/v1/motions").json()["data"][0]["id"] == motion["id"]
    assert client.delete(url).status_code == 200
    assert client.get(url).status_code == 404
    assert [name for name in files(where) if "/motions/" in name] == []


def test_bucket_and_disk_give_the_same_video(
    tiny_pipeline, tiny_model, settings, photo_file, motion_file, tmp_path
):
    """Through the real renderer and model; only the way between them is short."""
    from serve.config import Settings

    class Way:
        """Calls a sampler's work in threads of this process."""

        def options(self, **_):
            return self

        def __init__(self):
            self.prepare = self.render = None

    class Call:
        def __init__(self, work):
            self.remote = lambda *args: asyncio.to_thread(work, *args)

    def render(pipe, folder, indices):
        chunk = frame_rendering.Chunk(pipe=pipe, folder=folder, indices=indices)
        frame_rendering.render([chunk])()
        return chunk.seconds.result()

    results = {}
    for name, storage in {"disk": str(tmp_path / "videos"), "bucket": settings["storage"]}.items():
        folder = Store(storage).create(
            request=RenderRequest(preset="fast", align=False, seed=3),
            photos=[photo_file.read_bytes()], motion=motion_file.read_bytes(), motion_suffix=".npz",
        )  # fmt: skip
        way = Way()
        way.prepare = Call(lambda _, folder=folder: frame_rendering.prepare(tiny_pipeline, folder))
        way.render = Call(lambda _, indices, folder=folder: render(tiny_pipeline, folder, indices))
        renderer = Renderer(
            Settings(model=str(tiny_model), subjects="", storage=storage, chunk_size=4), 1, way
        )
        state = asyncio.run(renderer.render(str(folder.path)))
        assert state.status == "completed", state.error
        assert list(folder.finished_chunks()) == []
        results[name] = video.read(on_disk(folder.result)).frames
    np.testing.assert_array_equal(results["bucket"], results["disk"])


def test_chunk_of_a_deleted_video_is_not_stored(settings):
    folder = Store(settings["storage"]).create(
        request=RenderRequest(), photos=[b"x"], motion=b"x", motion_suffix=".npz"
    )
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    folder.write_chunk(range(2), frames)
    ((indices, path),) = folder.finished_chunks()
    assert indices == range(2)
    np.testing.assert_array_equal(read_chunk(path), frames)
    folder.mark_deleted()
    folder.remove()
    with pytest.raises(FileNotFoundError):
        folder.write_chunk(range(2, 4), frames)
    assert not folder.path.exists()
