"""Requests that are rejected early, repeated, or sent by other sites."""

import asyncio
import io
import stat
import zipfile

import numpy as np
import pytest
from PIL import Image

from dreampose.poses.motion import Motion
from serve.keys import Keys

HERE = ("127.0.0.1", 50000)


@pytest.fixture
def shop(make_service, tmp_path):
    """A service with a key, and the headers with it."""
    key = Keys(tmp_path / "keys.txt").add("shop")
    return make_service(keys=str(tmp_path / "keys.txt")), {"Authorization": f"Bearer {key}"}


def call(running, method, path, headers, receive):
    """Status and headers of a response, with full control over the body."""
    messages = []

    async def send(message):
        messages.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": HERE, "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def run():
        await asyncio.wait_for(running.app(scope, receive, send), 30)

    running.client.portal.call(run)
    return messages[0]["status"], dict(messages[0]["headers"])


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/motions", "/v1/subjects", "/", "/healthz"])
def test_body_of_an_unauthenticated_request_is_never_read(shop, path):
    running, _ = shop

    async def receive():
        raise AssertionError("the body was read")

    headers = {"host": "localhost", "content-length": "100000000"}
    status, answered = call(running, "POST", path, headers, receive)
    assert status in (401, 405)
    assert status == 405 or answered[b"connection"] == b"close"


def test_parallel_uploads_are_limited_and_polls_are_not(make_service, eventually):
    running = make_service(uploads_per_key=2)
    release = asyncio.Event()

    async def receive():
        await release.wait()
        return {"type": "http.disconnect"}

    headers = {
        "host": "localhost",
        "content-type": "multipart/form-data; boundary=b",
        "transfer-encoding": "chunked",
    }

    async def start():
        async def ignore(message):
            pass

        def scope():
            return {
                "type": "http", "method": "POST", "path": "/v1/motions", "raw_path": b"/v1/motions",
                "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
                "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
                "client": HERE, "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"},
            }  # fmt: skip

        tasks = [asyncio.create_task(running.app(scope(), receive, ignore)) for _ in range(2)]
        await asyncio.sleep(0.1)
        return tasks

    tasks = running.client.portal.call(start)
    third = running.client.post("/v1/motions", files={"file": b"x"})
    assert (third.status_code, third.headers["retry-after"]) == (429, "5")
    assert "parallel uploads per key" in third.json()["error"]["message"]
    assert running.client.get("/v1/videos").status_code == 200
    deleted = running.client.delete("/v1/motions/motion_0")
    assert deleted.status_code == 404, "a request without a body is no upload"

    async def end():
        release.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    running.client.portal.call(end)
    assert running.client.post("/v1/motions", files={"file": b"x"}).status_code == 400


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_other_content_types_are_unsupported(shared, content_type):
    answer = shared.client.post("/v1/videos", content=b"{}", headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert "Content-Type must be multipart/form-data" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 404),
        ({"Sec-Fetch-Site": "none"}, 404),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 404),
        ({}, 404),
    ],
)
def test_other_sites_cannot_change_anything_without_a_key(shared, headers, status):
    assert shared.client.delete("/v1/videos/video_0", headers=headers).status_code == status


def test_other_sites_requests_with_a_key_are_served(shop):
    running, headers = shop
    headers = headers | {"Sec-Fetch-Site": "cross-site"}
    assert running.client.delete("/v1/videos/video_0", headers=headers).status_code == 404


def test_responses_have_security_headers(shared):
    for path in ("/v1/videos", "/v1/none", "/healthz", "/"):
        headers = shared.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] in ("no-store", "no-cache")


class TestIdempotency:
    def test_repeated_request_returns_the_first_response(self, running, post):
        headers = {"Idempotency-Key": "order 17/ü"[:9]}
        first = post(running.client, seed="1", headers=headers)
        again = post(running.client, seed="1", headers=headers)
        assert again.json() == first.json()
        assert again.headers["idempotent-replayed"] == "true"
        assert len(running.client.get("/v1/videos").json()["data"]) == 1
        other = post(running.client, seed="1", headers={"Idempotency-Key": "order 18"})
        assert other.json()["id"] != first.json()["id"]

    def test_key_survives_a_restart(self, make_service, post):
        headers = {"Idempotency-Key": "a"}
        first = post(make_service().client, headers=headers).json()
        assert post(make_service().client, headers=headers).json() == first

    def test_failed_request_may_be_repeated(self, running, post, photo_file):
        headers = {"Idempotency-Key": "a"}
        assert post(running.client, preset="best", headers=headers).status_code == 400
        assert post(running.client, headers=headers).status_code == 200

    def test_reused_key_for_another_body_is_rejected(self, running, post):
        headers = {"Idempotency-Key": "a"}
        assert post(running.client, headers=headers).status_code == 200
        answer = post(running.client, photos=2, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            422,
            "idempotency_key_reused",
        )

    def test_keys_of_different_owners_and_routes_are_independent(
        self, running, post, photo_file, motion_file
    ):
        headers = {"Idempotency-Key": "a"}
        post(running.client, headers=headers).raise_for_status()
        files = {"file": motion_file.read_bytes()}
        motion = running.client.post("/v1/motions", files=files, headers=headers)
        assert motion.json()["object"] == "motion"

    def test_long_key_is_rejected(self, running, post):
        assert post(running.client, headers={"Idempotency-Key": "x" * 256}).status_code == 400


def test_stored_photos_are_reduced_and_stripped(running, post, tmp_path):
    running.backend.hold = True
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 4000), (10, 20, 30)).save(buffer, format="JPEG", exif=exif)
    content = buffer.getvalue() + b"padding" * 10_000
    answer = running.client.post("/v1/videos", files={"input_reference": content})
    folder = running.service.videos.store.folder(answer.raise_for_status().json()["id"])
    with Image.open(folder.photos[0]) as image:
        assert (image.format, max(image.size)) == ("PNG", running.service.photo_side)
        assert not image.getexif()
        assert np.abs(np.asarray(image.convert("RGB"))[5, 5].astype(int) - (10, 20, 30)).max() < 4


def test_padding_of_motions_is_not_stored(running, motion_video, motion_file):
    box = (8 + 2**20).to_bytes(4, "big") + b"free" + bytes(2**20)
    padded = motion_video.read_bytes() + box
    client = running.client
    motion = client.post("/v1/motions", files={"file": padded}).raise_for_status().json()
    folder = running.service.motions.folder(motion["id"])
    assert folder.upload.stat().st_size < 2**16
    archive = io.BytesIO(motion_file.read_bytes())
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("padding.npy", np.lib.format.magic(1, 0) + b"")
    answer = client.post("/v1/motions", files={"file": motion_file.read_bytes()})
    track = running.service.motions.folder(answer.json()["id"]).track(64, 48)
    assert track.read_bytes() == motion_file.read_bytes()


def test_motions_of_a_key_are_counted_and_expire(make_service, motion_file, tmp_path):
    running = make_service(stored_mb_per_key=1)
    answer = running.client.post("/v1/motions", files={"file": motion_file.read_bytes()})
    assert answer.json()["num_bytes"] == motion_file.stat().st_size
    library = running.service.motions
    library.folder(answer.json()["id"]).update(num_bytes=2**20)
    Motion.load(motion_file).between(0, 8).save(tmp_path / "other.npz")
    other = {"file": (tmp_path / "other.npz").read_bytes()}
    full = running.client.post("/v1/motions", files=other)
    assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
    running.service.reconfigure({"keep_motions_hours": 1e-9})
    running.client.portal.call(library.sweep)
    assert running.client.get("/v1/motions").json()["data"] == []
    assert running.client.post("/v1/motions", files=other).status_code == 200


def test_storage_folders_are_private(make_service, tmp_path):
    make_service(storage=str(tmp_path / "a" / "videos"), motions=str(tmp_path / "a" / "motions"))
    for name in ("a", "a/videos", "a/motions"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o700


def test_routes_have_names_for_the_access_log(shared):
    from ray.serve._private.thirdparty.get_asgi_route_name import (
        extract_route_patterns,
        get_asgi_route_name,
    )

    patterns = {pattern.path for pattern in extract_route_patterns(shared.app)}
    assert {"/v1/videos", "/v1/videos/{video_id}", "/v1/motions/{motion_id}/preview"} <= patterns
    for path, name in (
        ("/v1/videos/video_0/content", "/v1/videos/{video_id}/content"),
        ("/healthz", "/healthz"),
        ("/", "/"),
    ):
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        assert get_asgi_route_name(shared.app, scope) == name
