"""Invalid requests to every route."""

import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image

from dreampose.io import video

schemathesis = pytest.importorskip("schemathesis")

BOUNDED = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FORM = {"Content-Type": "multipart/form-data; boundary=b"}


def photo(format="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format=format)
    return buffer.getvalue()


def clip(tmp_path, fps=12.5, num_frames=10):
    video.write(tmp_path / "clip.mp4", np.zeros((num_frames, 64, 48, 3), np.uint8), fps)
    return (tmp_path / "clip.mp4").read_bytes()


def still(content):
    """An MP4 whose frames last for ever: as good as 0 frames per second."""
    start = content.index(b"stts") + 16
    return content[:start] + struct.pack(">I", 2**31 - 1) + content[start + 4 :]


def zipped(name="readme.txt"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, "hello")
    return buffer.getvalue()


def inflating(size):
    """A PNG with a comment that is a million times as long once unpacked."""
    body = b"Comment\0\0" + zlib.compress(b"x" * size, 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = photo()
    return whole[:33] + chunk + whole[33:]


MOTIONS = {
    "half of an MP4": lambda p: clip(p)[: len(clip(p)) // 2],
    "an MP4 without its index": lambda p: clip(p).replace(b"moov", b"void"),
    "a codec nobody knows": lambda p: clip(p).replace(b"avc1", b"none"),
    "another codec than it says": lambda p: clip(p).replace(b"avc1", b"jpeg"),
    "0 frames per second": lambda p: still(clip(p)),
    "a thousand frames per second": lambda p: clip(p, fps=1000),
    "one frame": lambda p: clip(p, num_frames=1),
    "a minute and more": lambda p: clip(p, fps=1, num_frames=61),
    "an MP4's head before a zip": lambda p: clip(p)[:8] + zipped(),
    "an MP4's head before a page": lambda p: clip(p)[:32] + b"<html><script>1</script>",
    "a Matroska's head before an MP4": lambda p: b"\x1a\x45\xdf\xa3" + clip(p),
    "a photo before an MP4": lambda p: photo() + clip(p),
    "a zip with a way out": lambda p: zipped("../../../../evil.npy"),
    "a zip with an absolute name": lambda p: zipped("/etc/maps.npy"),
    "a zip behind a comment": lambda p: b"#!/bin/sh\n" + zipped(),
    "a playlist": lambda p: b"#EXTM3U\nhttp://127.0.0.1/secret\n",
    "a session description": lambda p: b"v=0\nc=IN IP4 127.0.0.1\nm=video 1 RTP/AVP 96\n",
    "a megabyte of nothing": lambda p: bytes(2**20),
}


@pytest.fixture(autouse=True)
def _nothing_asked_yet(request):
    """What one test had the service do is not held against the next."""
    if "shared" in request.fixturenames:
        request.getfixturevalue("shared").backend.calls.clear()


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("path", ["/v1/motions", "/v1/videos"])
def test_invalid_motion_is_rejected_with_a_message(shared, tmp_path, name, path):
    content = MOTIONS[name](tmp_path)
    if path == "/v1/motions":
        files = {"file": ("walk.mp4", content)}
    else:
        files = {"motion": ("walk.mp4", content), "input_reference": photo()}
    refused(shared, shared.client.post(path, files=files), "motion")


PHOTOS = {
    "a picture of another kind under its name": photo("GIF"),
    "a comment that fills the memory": inflating(2**26),
    "a checksum that is wrong": photo()[:60] + b"\0" + photo()[61:],
    "a JPEG's head before a PNG": b"\xff\xd8\xff\xe0" + photo(),
    "a PNG's head before a page": photo()[:8] + b"<html>",
    "a page before a PNG": b"<html></html>" + photo(),
    "a WebP that claims 268 megapixels": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
    + struct.pack("<I", 16383)[:3] * 2,
}


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    ("path", "field"), [("/v1/videos", "input_reference"), ("/v1/subjects", "photos")]
)
def test_invalid_photo_is_rejected_with_a_message(shared, name, path, field):
    answer = shared.client.post(path, files={field: ("photo.png", PHOTOS[name])})
    refused(shared, answer, "photo")


REQUESTS = {
    "no motion": ("POST", "/v1/motions", {}),
    "a motion that is text": ("POST", "/v1/motions", {"data": {"file": "walk"}}),
    "two motions where one is meant": ("POST", "/v1/motions", {"json": {"file": ["a", "b"]}}),
    "no photos of a subject": ("POST", "/v1/subjects", {"data": {"name": "anna"}}),
    "photos that are text": ("POST", "/v1/subjects", {"data": {"photos": "anna.png"}}),
    "a name of a book": (
        "POST", "/v1/subjects", {"data": {"name": "a" * 101}, "files": {"photos": photo()}}
    ),
    "JSON instead of a form": ("POST", "/v1/videos", {"json": {"prompt": "walk"}}),
    "a URL instead of a photo": (
        "POST", "/v1/videos", {"json": {"input_reference": {"image_url": "http://127.0.0.1"}}}
    ),
    "a form without an end": (
        "POST", "/v1/videos", {"content": b'--b\r\nContent-Disposition: form-data; name="seed"',
                               "headers": FORM}
    ),
    "a part without a name": (
        "POST", "/v1/videos", {"content": b"--b\r\nX: y\r\n\r\nz\r\n--b--\r\n", "headers": FORM}
    ),
    "a field of two megabytes": ("POST", "/v1/videos", {"data": {"prompt": "x" * 2**21},
                                                        "files": {"input_reference": photo()}}),
    "two thousand fields": (
        "POST", "/v1/videos", {"data": {f"f{i}": "x" for i in range(2000)},
                               "files": {"input_reference": photo()}}
    ),
    "two thousand photos": (
        "POST", "/v1/videos", {"files": [("input_reference", photo()) for _ in range(2000)]}
    ),
    "a seed of another alphabet": ("POST", "/v1/videos", {"data": {"seed": "\u0667"}}),
    "a seed of a thousand digits": ("POST", "/v1/videos", {"data": {"seed": "9" * 1000}}),
    "seconds that are a list": ("POST", "/v1/videos", {"data": {"seconds": "[4]"}}),
    "a preset with an end of text": ("POST", "/v1/videos", {"data": {"preset": "fast\0"}}),
    "a size with a line's end": ("POST", "/v1/videos", {"data": {"size": "48x64\n"}}),
    "a limit below one": ("GET", "/v1/videos?limit=-5", {}),
    "a limit beyond reason": ("GET", "/v1/videos?limit=1000000000000000000000", {}),
    "an order of its own": ("GET", "/v1/videos?order=sideways", {}),
    "a variant that is a path": ("GET", "/v1/videos/video_0/content?variant=../../etc/passwd", {}),
    "frames that are no choice": ("GET", "/v1/videos/video_0/events?frames=perhaps", {}),
    "content of nothing": ("GET", "/v1/videos/video_0/content", {}),
    "events of nothing": ("GET", "/v1/videos/video_0/events", {}),
    "a path in place of an id": ("GET", "/v1/videos/..%2f..%2f..%2fetc%2fpasswd/content", {}),
    "a Windows path in place of an id": ("GET", "/v1/videos/..%5c..%5cboot.ini/content", {}),
    "an id of no text": ("DELETE", "/v1/motions/%ff%fe", {}),
    "an id with a line's end": ("GET", "/v1/subjects/subject_0%0d%0aX-Evil:%201", {}),
    "another's folder": ("DELETE", "/v1/subjects/.jobs", {}),
    "a method nobody knows": ("PATCH", "/v1/videos/video_0", {}),
    "deletion of everything": ("DELETE", "/v1/videos", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_invalid_request_is_rejected_with_a_message(shared, name):
    method, path, kwargs = REQUESTS[name]
    refused(shared, shared.client.request(method, path, **kwargs))


def refused(running, answer, field=None):
    """A 4xx with a sentence that tells nothing of the server; nothing kept; the service well."""
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert len(error["message"].split()) > 1, error
    assert len(error["message"]) < 400
    assert "/tmp" not in answer.text
    if field:
        assert error["message"].startswith((f"{field} ", f"{field}: ")), error
    assert running.backend.calls == []
    assert running.client.get("/healthz").status_code == 200
    assert running.client.get("/readyz").status_code == 200


def test_expired_ids_are_not_found(make_service, post, finished, eventually):
    running = make_service(keep_hours=1e-6)
    video_id = post(running.client).json()["id"]
    path = f"/v1/videos/{video_id}"
    eventually(lambda: running.client.get(path).status_code == 404)
    for method, end in (("GET", "/content"), ("GET", "/events"), ("DELETE", "")):
        answer = running.client.request(method, path + end)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("name", ["../../../evil.png", "/etc/evil.png", "..\\evil.png", "e\0.png"])
def test_uploads_are_stored_under_generated_names(make_service, motion_file, tmp_path, name):
    running = make_service()
    running.backend.hold = True
    files = {"input_reference": (name, photo()), "motion": (name, motion_file.read_bytes())}
    answer = running.client.post("/v1/videos", files=files)
    assert answer.status_code == 200, answer.text
    folder = running.service.videos.store.folder(answer.json()["id"])
    assert [path.name for path in folder.photos] == ["0.img"]
    assert not list(tmp_path.rglob("*evil*"))
    running.backend.hold = False


def test_generated_requests_get_documented_responses(start_service, tmp_path):
    """Schemathesis makes requests up from the OpenAPI document, right ones and wrong ones.

    Every answer is one that the document tells of.
    """
    from schemathesis.specs.openapi import checks

    running = start_service(
        tmp_path, open=True, requests_per_minute=10**6, posts_per_minute=10**6
    )  # fmt: skip
    conformance = [checks.status_code_conformance, checks.response_schema_conformance]
    answered = set()

    def call(case):
        answer = case.call()
        answered.add((case.method, case.path, answer.status_code))
        assert answer.status_code < 500, (case.method, case.path, case.body, answer.text)
        if answer.status_code >= 400:
            assert json.loads(answer.content)["error"]["message"]
        case.validate_response(answer, checks=conformance)

    document = schemathesis.openapi.from_asgi("/openapi.json", running.app)
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            case = operation.as_strategy(generation_mode=mode)
            given(case=case)(BOUNDED(lambda case: call(case)))()
    assert {path for _, path, _ in answered} == set(document.raw_schema["paths"])
    assert {status for *_, status in answered} >= {200, 400, 404}
