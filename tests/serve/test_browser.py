"""The web page in Chromium."""

import contextlib
import os
import re
import shutil
import socket
import threading

import pytest
import uvicorn

from dreampose.errors import InputError
from serve.keys import Keys

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

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
            service = start_service(tmp_path, with_page=True, **settings)
            listening = socket.create_server(("127.0.0.1", 0))
            config = uvicorn.Config(service.app, log_level="warning", timeout_graceful_shutdown=1)
            server = uvicorn.Server(config)
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

            def complained(text):
                if not any(part in text for part in expected):
                    faults.append(text)

            page.on("request", asked)
            page.on("pageerror", lambda error: complained(str(error)))
            page.on("console", lambda line: line.type == "error" and complained(line.text))
            page.goto(address)
            return page

        yield go
    assert faults == []


def size(page, element):
    """Of the video in an element; Playwright's own waiting is stopped by the page's policy."""
    videos = page.locator(f"#{element} video")
    if videos.count() == 0:
        return None
    width, height, seconds = videos.first.evaluate(
        "video => [video.videoWidth, video.videoHeight, video.duration || 0]"
    )
    return (width, height, round(seconds, 3)) if width else None


def choose(page, element, text):
    page.click(f"#{element} input")
    page.get_by_role("option", name=text).click()


def expect(page, selector):
    return playwright.expect(page.locator(selector))


def toast(page):
    return page.locator("[data-testid=toast-text]")


def open_page(visit, service, eventually, **kwargs):
    """The page as it is once the service's own motion is shown."""
    page = visit(service.address, **kwargs)
    eventually(lambda: size(page, "preview"))
    return page


def test_from_photos_to_a_video_beside_its_motion(
    served, visit, photo_file, motion_video, tmp_path, eventually
):
    service = served()
    page = open_page(visit, service, eventually)
    page.set_input_files("#photos input[type=file]", [photo_file, photo_file])
    expect(page, "#photos .grid-container img").to_have_count(2, timeout=PATIENCE)
    page.set_input_files("#motion-file input[type=file]", motion_video)
    expect(page, "#motion-state").to_contain_text("10 frames", timeout=PATIENCE)
    expect(page, "#motion input").to_have_value(re.compile("10 frames, 0.8 s"))
    expect(page, "#preview video").to_have_attribute(
        "src", re.compile(r"/motion_\w+\.mp4$"), timeout=PATIENCE
    )
    eventually(lambda: size(page, "preview") == (384, 512, 0.8))
    # Nothing was rendered for all of that.
    assert service.backend.asked("render") == []
    choose(page, "preset", "fast")
    page.fill("#seed input", "7")
    service.backend.hold = True
    page.click("#render")
    expect(page, "#progress").to_contain_text("In progress · 40 %", timeout=PATIENCE)
    expect(page, "#progress .strip img").to_have_count(4, timeout=PATIENCE)
    expect(page, "#newest img").to_be_visible()
    expect(page, "#render").to_be_disabled()
    service.backend.hold = False
    eventually(lambda: size(page, "result"))
    assert size(page, "result") == (48, 64, 0.8)
    assert size(page, "preview")
    with page.expect_download() as download:
        page.click("#download")
    (video_id,) = service.backend.asked("render")
    assert download.value.suggested_filename == f"{video_id}.mp4"
    download.value.save_as(tmp_path / "video.mp4")
    folder = service.service.videos.store.folder(video_id)
    assert (tmp_path / "video.mp4").read_bytes() == folder.result.read_bytes()
    request = folder.request()
    assert (request.preset, request.seed, len(folder.photos)) == ("fast", 7, 2)


def test_what_is_wrong_is_told_in_the_words_of_the_interface(
    served, visit, photo_file, motion_video, eventually
):
    service = served()
    page = open_page(visit, service, eventually)
    page.click("#render")
    expect(page, "[data-testid=toast-text]").to_have_text("photos must be at least one, got none")
    text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"hello"}
    page.set_input_files("#photos input[type=file]", text)
    playwright.expect(toast(page).last).to_contain_text("Only .png, .jpg", timeout=PATIENCE)
    text |= {"name": "<b>.png", "mimeType": "image/png"}
    page.set_input_files("#photos input[type=file]", text)
    expect(page, "#photos .grid-container img").to_have_count(1, timeout=PATIENCE)
    page.click("#render")
    playwright.expect(toast(page).last).to_contain_text("photo must be a picture", timeout=PATIENCE)
    expect(page, "#render").to_be_enabled()
    text |= {"name": "walk.mp4", "mimeType": "video/mp4"}
    page.set_input_files("#motion-file input[type=file]", text)
    playwright.expect(toast(page).last).to_contain_text("motion must be", timeout=PATIENCE)
    expect(page, "#render").to_be_enabled()
    page.fill("#seed input", "-3")
    page.click("#render")
    playwright.expect(toast(page).last).to_contain_text("seed must be", timeout=PATIENCE)
    assert service.backend.calls == []


def test_poses_that_cannot_be_read_are_told(served, visit, motion_video, eventually):
    service = served()
    service.backend.broken = InputError("video must show one person, got nobody")
    page = open_page(visit, service, eventually)
    page.set_input_files("#motion-file input[type=file]", motion_video)
    playwright.expect(toast(page)).to_have_text(
        "video must show one person, got nobody", timeout=PATIENCE
    )


def test_a_render_outlives_its_page_and_can_be_called_off(served, visit, photo_file, eventually):
    service = served()
    service.backend.hold = True
    # What Gradio's script says when it is torn from its stream.
    page = open_page(visit, service, eventually, expected=["AbortError", "errored out"])
    page.set_input_files("#photos input[type=file]", photo_file)
    expect(page, "#photos .grid-container img").to_have_count(1, timeout=PATIENCE)
    page.click("#render")
    expect(page, "#newest img").to_be_visible(timeout=PATIENCE)
    page.reload()
    # The page that is opened again shows where the video is.
    expect(page, "#newest img").to_be_visible(timeout=PATIENCE)
    assert service.backend.at_once == 1
    page.click("#cancel")
    expect(page, "#progress").to_contain_text("Cancelled", timeout=PATIENCE)
    eventually(lambda: service.backend.at_once == 0)
    expect(page, "#render").to_be_enabled()
    assert service.service.videos.ids == []


def test_a_key_is_asked_for_and_used(served, visit, photo_file, tmp_path, eventually):
    key = Keys(tmp_path / "keys.txt").add("shop")
    service = served(keys=str(tmp_path / "keys.txt"))
    page = visit(service.address, expected=["401 (Unauthorized)"])
    page.fill("#key", "dp_wrong")
    page.press("#key", "Enter")
    expect(page, "[role=alert]").to_have_text("That is not a valid key.")
    page.fill("#key", key)
    page.press("#key", "Enter")
    eventually(lambda: size(page, "preview"))
    page.set_input_files("#photos input[type=file]", photo_file)
    expect(page, "#photos .grid-container img").to_have_count(1, timeout=PATIENCE)
    page.click("#render")
    eventually(lambda: size(page, "result"))
    (video_id,) = service.backend.asked("render")
    assert service.service.videos.store.folder(video_id).request().owner == "shop"
