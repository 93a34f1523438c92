"""HTTP behaviour of the web page."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from dreampose.io import video
from serve.keys import Keys
from serve.web import page as page_module
from serve.web.visit import KEY

pytest.importorskip("gradio")


@pytest.fixture
def paged(make_service):
    """Starts a service that has the page."""

    def make(**settings):
        return make_service(with_page=True, **settings)

    return make


def event_of(client, name):
    """Index of the page's handler of that name."""
    dependencies = client.get("/config").raise_for_status().json()["dependencies"]
    (found,) = [each["id"] for each in dependencies if each["api_name"] == name]
    return found


def ask(client, name, *values):
    """What the page's handler says in the end: whether it went well, and its output."""
    body = {"data": values, "fn_index": event_of(client, name), "session_hash": "test"}
    client.post("/gradio_api/queue/join", json=body).raise_for_status()
    answer = client.get("/gradio_api/queue/data", params={"session_hash": "test"})
    messages = [json.loads(line[6:]) for line in answer.text.splitlines() if line]
    (end,) = [message for message in messages if message["msg"] == "process_completed"]
    return end["success"], json.dumps(end["output"])


def upload(client, content, **kwargs):
    return client.post("/gradio_api/upload", files={"files": ("walk.mp4", content)}, **kwargs)


def file(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def test_the_page_may_load_nothing_from_elsewhere(paged):
    client = paged().client
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not any(text in policy for text in ("http", "*", "unsafe-eval"))
    assert not re.findall(
        r"<(?:script|link|img)[^>]*(?:src|href)=.?(?:https?:)?//[^>]*", answer.text
    )
    assert "url(" not in re.sub(r"url\(['\"]?data:", "", client.get("/theme.css").text)


def test_the_interface_stays_as_it_is(paged):
    client = paged().client
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/v1/videos", "/v1/motions"):
        assert client.get(path).status_code == 200
    assert client.get("/openapi.json").json()["info"]["title"] == "DreamPose"
    answer = client.patch("/v1/videos/video_0")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    for path in (
        "/none", "/v1/none", "/monitoring", "/login", "/gradio_api/info", "/gradio_api/run/begin",
        "/gradio_api/call/begin", "/gradio_api/proxy=https://example.com/x",
        "/gradio_api/file=https://example.com/x", "/gradio_api/vibe-code", "/gradio_api/runs",
    ):  # fmt: skip
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), path


def test_only_files_that_were_uploaded_are_read(paged, tmp_path, motion_video):
    running = paged()
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(motion_video.read_bytes())
    storage = running.service.videos.store.root
    (storage / ".page" / "link.mp4").symlink_to(secret)
    for place in (
        secret, "/etc/passwd", "https://example.com/walk.mp4", "file:///etc/passwd",
        storage / ".page" / ".." / ".." / "secret.mp4", storage / ".page" / "link.mp4", "\0",
    ):  # fmt: skip
        success, output = ask(running.client, "take_motion", file(place))
        assert not success
        assert "files must be uploaded to the page" in output
        # A URL that comes without the mark of a file is no file either.
        assert not ask(running.client, "choose_motion", file(place))[0]
    assert running.client.get("/v1/motions").json()["data"] == []
    for place in ("/etc/passwd", secret, f"{storage}/.page/../../secret.mp4"):
        answer = running.client.get(f"/gradio_api/file={place}")
        assert answer.status_code in (403, 404), place
    (uploaded,) = upload(running.client, motion_video.read_bytes()).json()
    assert ask(running.client, "take_motion", file(uploaded))[0]
    (motion,) = running.client.get("/v1/motions").json()["data"]
    assert motion["status"] == "completed"
    answer = running.client.get(f"/gradio_api/file={uploaded}")
    assert answer.content == motion_video.read_bytes()


def test_what_failed_inside_is_not_told(paged):
    running = paged()
    running.service.motions.all = None
    success, output = ask(running.client, "begin")
    assert not success
    assert "the service failed" in output
    assert "NoneType" not in output
    assert "Traceback" not in output


def test_nothing_of_the_page_works_without_a_key_where_keys_are_in_use(paged, tmp_path):
    keys = Keys(tmp_path / "keys.txt")
    red, blue = keys.add("red"), keys.add("blue")
    running = paged(keys=str(keys.path))
    client = running.client
    answer = client.get("/")
    assert answer.status_code == 401
    assert "gradio" not in answer.text
    assert "API key" in answer.text
    assert upload(client, b"x").status_code == 401
    for path in (
        "/config",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/file=/etc/passwd",
    ):
        assert client.get(path).status_code == 401
    assert client.post("/gradio_api/queue/join", json={}).status_code == 401
    assert not any((running.service.videos.store.root / ".page").iterdir())
    for wrong in ("", "dp_wrong", "x" * 10_000):
        assert client.post("/key", data={"key": wrong}).status_code == 401
    answer = client.post("/key", data={"key": f" {red} "}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{KEY}={red};")
    assert {"HttpOnly", "SameSite=lax"} <= set(cookie.split("; "))
    assert "gradio" in client.get("/").text
    # The cookie is for the page: other pages can have a browser send it.
    assert client.get("/v1/videos").status_code == 401
    client.post("/v1/motions", headers={"Authorization": f"Bearer {blue}"})
    success, _ = ask(client, "begin")
    assert success
    keys.remove("red")
    assert client.get("/").status_code == 401


def test_without_keys_the_page_is_for_this_machine_alone(paged):
    client = paged().client
    answer = client.get("/", headers={"X-Forwarded-For": "10.0.0.7"})
    assert answer.status_code == 403
    assert "only this machine is answered" in answer.text
    assert upload(client, b"x", headers={"X-Forwarded-For": "10.0.0.7"}).status_code == 403
    assert client.post("/key", data={"key": "x"}).status_code == 401


def test_uploads_to_the_page_are_bounded(paged):
    client = paged(max_upload_mb=1, posts_per_minute=3).client
    answer = upload(client, b"x" * (2 * 2**20))
    assert (answer.status_code, answer.text) == (413, "the body must hold at most 1 MB, got more")
    assert client.get("/config").json()["max_file_size"] == 2**20
    answers = [upload(client, b"x") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[-1].text.startswith("a key may ")
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_streams_of_the_page_are_bounded(paged, monkeypatch):
    monkeypatch.setattr(page_module, "STREAMS_OF_PAGES", 0)
    assert paged().client.get("/gradio_api/heartbeat/x").status_code == 429


def test_behind_a_prefix_the_page_asks_there(start_service, tmp_path):
    from fastapi.testclient import TestClient

    running = start_service(tmp_path, with_page=True)
    client = TestClient(
        running.app, base_url="http://127.0.0.1:8000", client=("127.0.0.1", 1), root_path="/look"
    )
    with client:
        text = client.get("/look/").text
        assert '"root":"http://127.0.0.1:8000/look"' in text
        assert client.get("/look/theme.css").status_code == 200
        assert client.get("/look/v1/videos").status_code == 200
    # One that takes its prefix away says so.
    told = {"X-Forwarded-Prefix": "/look/", "X-Forwarded-Host": "shop.example"}
    text = running.client.get("/", headers=told).text
    assert '"root":"http://shop.example/look"' in text
    for wrong in ("//evil.example", '/look"', "look"):
        text = running.client.get("/", headers={"X-Forwarded-Prefix": wrong}).text
        assert '"root":"http://127.0.0.1:8000"' in text


def test_gradio_is_imported_for_the_page_alone():
    code = "import sys, serve.api, serve.application; sys.exit('gradio' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_gradio_the_page_says_how_to_get_it(paged, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    client = paged().client
    assert "pip install" in client.get("/").text
    assert client.get("/v1/videos").status_code == 200


def test_motion_preview_shows_poses_over_the_video(running, motion_video, finished, tmp_path):
    motion = running.client.post("/v1/motions", files={"file": motion_video.read_bytes()}).json()
    finished(running.client, f"/v1/motions/{motion['id']}")
    answer = running.client.get(f"/v1/motions/{motion['id']}/preview")
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "preview.mp4").write_bytes(answer.content)
    shown = video.read(tmp_path / "preview.mp4")
    assert (shown.frames.shape[:3], shown.fps) == ((10, 512, 384), 12.5)
    # The video is black but for a grey box; the stand-in's pose is a square that walks over it.
    coloured = np.ptp(shown.frames[:, 256].astype(int), axis=-1) > 60
    columns = [np.flatnonzero(row).mean() for row in coloured]
    np.testing.assert_allclose(np.diff(columns), 8, atol=1)
    grey = shown.frames[9, 120, 100]
    assert grey.min() > 150


def test_motion_preview_errors(running, motion_video, eventually):
    running.backend.hold = True
    motion = running.client.post("/v1/motions", files={"file": motion_video.read_bytes()}).json()
    assert running.client.get(f"/v1/motions/{motion['id']}/preview").status_code == 409
    for name in ("motion_" + "0" * 32, "..", "default.mp4"):
        assert running.client.get(f"/v1/motions/{name}/preview").status_code == 404
    assert running.client.get("/v1/motions/default/preview").status_code == 200
