"""The page in a real browser, Debian's Chromium: from photos to a video that plays."""

import contextlib
import os
import shutil
import socket
import threading

import numpy as np
import pytest
import uvicorn

from dreampose import video
from serve.keys import Keys

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PATIENCE = 60_000
"""Milliseconds, on a machine that is busy with other things."""


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    # Whoever is root in a container cannot have Chromium's sandbox.
    sandbox = os.geteuid() != 0
    with (
        playwright.sync_playwright() as started,
        started.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=sandbox) as chromium,
    ):
        yield chromium


@pytest.fixture
def served(start_service, tmp_path):
    """Starts services on a port of this machine; gives what `start` does, and their address."""
    with contextlib.ExitStack() as running:

        def make(**settings):
            service = start_service(tmp_path, **settings)
            listening = socket.create_server(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})

            def stop():
                service.backend.hold = False
                server.should_exit = True
                thread.join()

            thread.start()
            running.callback(stop)
            service.address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            return service

        yield make


@pytest.fixture
def visit(browser):
    """Opens a page that talks to its own service alone and reports no fault of its own."""
    faults = []
    with contextlib.ExitStack() as opened:

        def go(address, *, expected=()):
            page = opened.enter_context(browser.new_context()).new_page()
            page.set_default_timeout(PATIENCE)

            def asked(request):
                if not request.url.startswith((address, "blob:", "data:")):
                    faults.append(f"asked {request.url}")

            page.on("request", asked)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("console", lambda line: faults.append(line.text) if is_fault(line) else None)

            def is_fault(line):
                return line.type == "error" and not any(text in line.text for text in expected)

            page.goto(address)
            return page

        yield go
    assert faults == []


def has_picture(page, element):
    """Whether a video shows anything; Playwright's own waiting is stopped by the page's policy."""
    return page.locator(f"#{element}").evaluate("video => video.videoWidth > 0")


def test_from_photos_to_a_video_beside_its_motion(
    served, visit, photo_file, motion_video, tmp_path, eventually
):
    service = served()
    page = visit(service.address)
    eventually(lambda: has_picture(page, "preview"))
    page.set_input_files("#photos", [photo_file, photo_file])
    playwright.expect(page.locator("#photo-list img")).to_have_count(2, timeout=PATIENCE)
    page.set_input_files("#motion-file", motion_video)
    playwright.expect(page.locator("#motion-state")).to_contain_text("10 frames", timeout=PATIENCE)
    assert page.input_value("#motion").startswith("motion_")
    eventually(lambda: has_picture(page, "preview"))
    # Nothing was rendered for all of that.
    assert service.backend.asked("render") == []
    page.select_option("#preset", "fast")
    page.fill("#seed", "7")
    service.backend.hold = True
    page.click("#render")
    playwright.expect(page.locator("#frames img")).to_have_count(4, timeout=PATIENCE)
    assert page.locator("#latest").is_visible()
    assert page.input_value("#seed") == "7"
    playwright.expect(page.locator("#state")).to_have_text("in progress · 40%", timeout=PATIENCE)
    service.backend.hold = False
    eventually(lambda: has_picture(page, "result"))
    size = page.locator("#result").evaluate("v => [v.videoWidth, v.videoHeight, v.duration]")
    assert size == [48, 64, 0.8]
    with page.expect_download() as download:
        page.click("#download")
    (video_id,) = service.backend.asked("render")
    assert download.value.suggested_filename == f"{video_id}.mp4"
    download.value.save_as(tmp_path / "video.mp4")
    folder = service.service.desk.store.folder(video_id)
    assert (tmp_path / "video.mp4").read_bytes() == folder.result.read_bytes()
    request = folder.request()
    assert (request.preset, request.seed, len(folder.photos)) == ("fast", 7, 2)


def test_what_is_wrong_is_told_where_people_look(served, visit, photo_file):
    service = served()
    page = visit(service.address, expected=["400 (Bad Request)"])
    page.click("#render")
    playwright.expect(page.locator("#problem")).to_have_text(
        "photos must be at least one, got none"
    )
    page.set_input_files("#photos", {"name": "<b>.png", "mimeType": "image/png", "buffer": b"x"})
    page.click("#render")
    playwright.expect(page.locator("#problem")).to_contain_text(
        "photo must be a picture", timeout=PATIENCE
    )
    page.set_input_files("#motion-file", photo_file)
    playwright.expect(page.locator("#problem")).to_contain_text("motion must be", timeout=PATIENCE)
    assert service.backend.calls == []


def test_a_render_can_be_called_off(served, visit, photo_file, eventually):
    service = served()
    service.backend.hold = True
    page = visit(service.address)
    page.set_input_files("#photos", photo_file)
    page.click("#render")
    page.click("#cancel")
    playwright.expect(page.locator("#state")).to_have_text("cancelled", timeout=PATIENCE)
    eventually(lambda: service.backend.at_once == 0)
    assert page.locator("#render").is_enabled()


def test_a_key_is_asked_for_and_used(served, visit, photo_file, tmp_path, eventually):
    key = Keys(tmp_path / "keys.txt").add("shop")
    service = served(keys=str(tmp_path / "keys.txt"))
    page = visit(service.address, expected=["401 (Unauthorized)"])
    page.fill("#key", key)
    page.press("#key", "Tab")
    eventually(lambda: has_picture(page, "preview"))
    page.set_input_files("#photos", photo_file)
    page.click("#render")
    eventually(lambda: has_picture(page, "result"))
    (video_id,) = service.backend.asked("render")
    assert service.service.desk.store.folder(video_id).request().owner == "shop"


def test_the_page_may_load_nothing_from_elsewhere(running):
    for path, kind in (
        ("/", "text/html"),
        ("/page.js", "text/javascript"),
        ("/page.css", "text/css"),
    ):
        answer = running.client.get(path)
        assert answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not any(text in policy for text in ("http", "*", "unsafe"))
        assert "//" not in answer.text.replace("// ", "")


def test_the_preview_shows_the_poses_over_their_video(running, motion_video, finished, tmp_path):
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


def test_a_preview_of_nothing_or_of_what_is_not_read_yet(running, motion_video, eventually):
    running.backend.hold = True
    motion = running.client.post("/v1/motions", files={"file": motion_video.read_bytes()}).json()
    assert running.client.get(f"/v1/motions/{motion['id']}/preview").status_code == 409
    for name in ("motion_" + "0" * 32, "..", "default.mp4"):
        assert running.client.get(f"/v1/motions/{name}/preview").status_code == 404
    assert running.client.get("/v1/motions/default/preview").status_code == 200
