"""HTTP behaviour of the web page and its files."""

import re
from pathlib import Path

import numpy as np
import pytest

from dreampose.io import video
from serve.keys import Keys
from serve.web import page

FILES = sorted(path.name for path in page.STATIC.iterdir())


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_page_loads_only_its_own_files(shared, path):
    answer = shared.client.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert not any(text in policy for text in ("http", "*", "unsafe"))
    linked = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    for name in linked:
        assert "//" not in name
        assert shared.client.get(f"/{name}").status_code == 200, name


@pytest.mark.parametrize("name", FILES)
def test_static_files_name_no_other_host(shared, name):
    answer = shared.client.get(f"/static/{name}")
    assert answer.status_code == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://", text)
    if name.endswith(".js"):
        assert answer.headers["content-type"].startswith(("text/javascript", "application/javas"))
        assert "innerHTML" not in text
        for imported in re.findall(r'from "\./([^"]+)"', text):
            assert imported in FILES


@pytest.mark.parametrize(
    "path", ["/static/../page.py", "/static/..%2fpage.py", "/static/%2e%2e/page.py", "/static/none"]
)
def test_only_static_files_are_served(shared, path):
    assert shared.client.get(path).status_code == 404


def test_page_needs_no_key_but_its_data_does(make_service, tmp_path):
    key = Keys(tmp_path / "keys.txt").add("shop")
    client = make_service(keys=str(tmp_path / "keys.txt")).client
    for path in ("/", "/docs", "/static/main.js", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200


def test_models_describe_what_the_page_offers(shared):
    (model,) = shared.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["size"]) == ("tiny", "model", "48x64")
    assert {preset["name"] for preset in model["presets"]} >= {"exact", "balanced", "fast"}


def test_page_works_without_a_build_step():
    assert {Path(name).suffix for name in FILES} <= {".html", ".css", ".js", ".svg"}


def test_motion_preview_shows_poses_over_the_video(running, motion_video, finished, tmp_path):
    motion = running.client.post("/v1/motions", files={"file": motion_video.read_bytes()}).json()
    finished(running.client, f"/v1/motions/{motion['id']}")
    answer = running.client.get(f"/v1/motions/{motion['id']}/preview")
    assert answer.headers["content-type"] == "video/mp4"
    (tmp_path / "preview.mp4").write_bytes(answer.content)
    shown = video.read(tmp_path / "preview.mp4")
    assert (shown.frames.shape[:3], shown.fps) == ((10, 512, 384), 12.5)
    # The video is black but for a grey box; the fake pose is a square that moves over it.
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
