"""The web page in Chromium."""

import contextlib
import os
import shutil
import socket
import threading

import pytest
import uvicorn

from dreampose.errors import InputError
from serve.keys import Keys

playwright = pytest.importorskip("playwright.sync_api")
playwright.expect.set_options(timeout=60_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
PATIENCE = 60_000
"""Milliseconds, for a busy machine."""


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
    """Width, height and seconds of a video that has loaded."""
    width, height, seconds = page.locator(f"#{element}").evaluate(
        "video => [video.videoWidth, video.videoHeight, video.duration || 0]"
    )
    return (width, height, round(seconds, 3)) if width else None


def expect(page, selector):
    return playwright.expect(page.locator(selector))


def alert(page):
    return page.locator("[role=alert]").last


def choose_photos(page, *photos):
    page.set_input_files("#photo-input", list(photos))
    expect(page, "#photos img").to_have_count(len(photos))


def open_page(visit, service, eventually, **kwargs):
    """The page once the default motion is shown."""
    page = visit(service.address, **kwargs)
    eventually(lambda: size(page, "preview"))
    return page


def sign_in(page, key):
    page.fill("#key", key)
    page.press("#key", "Enter")


def test_from_photos_to_a_downloaded_video(
    served, visit, photo_file, motion_video, tmp_path, eventually
):
    service = served()
    page = open_page(visit, service, eventually)
    choose_photos(page, photo_file, photo_file, photo_file)
    page.locator("#photos button").first.click()
    expect(page, "#photos img").to_have_count(2)
    page.set_input_files("#motion-input", motion_video)
    expect(page, "#motion-state").to_contain_text("10 frames")
    expect(page, "#motion option:checked").to_contain_text("10 frames, 0.8 s")
    eventually(lambda: size(page, "preview") == (384, 512, 0.8))
    # Nothing is rendered for that.
    assert service.backend.asked("render") == []
    page.select_option("#preset", "fast")
    page.fill("#seed", "7")
    service.backend.hold = True
    page.click("#render")
    expect(page, "#status").to_contain_text("In progress · 40 %")
    expect(page, "#strip img").to_have_count(4)
    expect(page, "#newest").to_be_visible()
    expect(page, "#cancel").to_be_visible()
    service.backend.hold = False
    eventually(lambda: size(page, "result"))
    assert size(page, "result") == (48, 64, 0.8)
    expect(page, "#status").to_have_text("Completed · 10 frames")
    expect(page, "#strip img").to_have_count(10)
    with page.expect_download() as download:
        page.click("#download")
    (video_id,) = service.backend.asked("render")
    assert download.value.suggested_filename == f"{video_id}.mp4"
    download.value.save_as(tmp_path / "video.mp4")
    folder = service.service.videos.store.folder(video_id)
    assert (tmp_path / "video.mp4").read_bytes() == folder.result.read_bytes()
    request = folder.request()
    assert (request.preset, request.seed, len(folder.photos)) == ("fast", 7, 2)


def test_options_reach_the_request(served, visit, photo_file, eventually):
    service = served()
    page = open_page(visit, service, eventually)
    choose_photos(page, photo_file)
    page.click("text=More options")
    page.fill("#size", "24x32")
    page.fill("#seconds", "0.5")
    page.uncheck("#align")
    page.click("#render")
    eventually(lambda: service.backend.asked("render"))
    (video_id,) = service.backend.asked("render")
    request = service.service.videos.store.folder(video_id).request()
    assert (request.size, request.seconds, request.align) == ((32, 24), 0.5, False)


def test_errors_are_shown_in_the_words_of_the_api(served, visit, photo_file, eventually):
    service = served()
    page = open_page(visit, service, eventually, expected=["400 (Bad Request)"])
    page.click("#render")
    playwright.expect(alert(page)).to_contain_text("Choose at least one photo")
    text = {"name": "<b>.png", "mimeType": "image/png", "buffer": b"hello"}
    page.set_input_files("#photo-input", text)
    expect(page, "#photos figcaption").to_have_text("<b>.png")
    page.click("#render")
    playwright.expect(alert(page)).to_contain_text("photo 1 is not a PNG")
    expect(page, "#render").to_be_enabled()
    page.set_input_files("#motion-input", text | {"name": "walk.mp4", "mimeType": "video/mp4"})
    playwright.expect(alert(page)).to_contain_text("motion must be")
    page.click("#photos button")
    choose_photos(page, photo_file)
    page.fill("#seed", "-3")
    page.click("#render")
    playwright.expect(alert(page)).to_contain_text("seed is not valid")
    alert(page).locator("button").click()
    assert service.backend.calls == []


def test_failed_pose_extraction_is_shown(served, visit, motion_video, eventually):
    service = served()
    service.backend.broken = InputError("video must show one person, got nobody")
    page = open_page(visit, service, eventually)
    page.set_input_files("#motion-input", motion_video)
    playwright.expect(alert(page)).to_contain_text("video must show one person, got nobody")


def test_render_cancelled_after_a_reload(served, visit, photo_file, eventually):
    service = served()
    service.backend.hold = True
    page = open_page(visit, service, eventually)
    choose_photos(page, photo_file)
    page.click("#render")
    expect(page, "#newest").to_be_visible()
    page.reload()
    # The reloaded page follows the video that is being rendered.
    expect(page, "#newest").to_be_visible()
    assert service.backend.at_once == 1
    page.click("#cancel")
    expect(page, "#status").to_have_text("Cancelled")
    eventually(lambda: service.backend.at_once == 0)
    expect(page, "#cancel").to_be_hidden()
    expect(page, "#render").to_be_enabled()
    expect(page, "#videos li").to_have_count(0)
    eventually(lambda: service.service.videos.ids == [])
    # And the page can render again.
    service.backend.hold = False
    choose_photos(page, photo_file)
    page.click("#render")
    eventually(lambda: size(page, "result"))


def test_several_videos_are_listed_after_a_reload(served, visit, photo_file, eventually):
    service = served()
    page = open_page(visit, service, eventually)
    choose_photos(page, photo_file)
    for count, seed in enumerate(("1", "2"), start=1):
        page.fill("#seed", seed)
        page.click("#render")
        # The status line may still be that of the video before.
        expect(page, "#videos .badge.completed").to_have_count(count)
        eventually(lambda: size(page, "result"))
    service.backend.hold = True
    page.fill("#seed", "3")
    page.click("#render")
    # A reload before the service has accepted the request would withdraw it.
    expect(page, "#videos li").to_have_count(3)
    page.reload()
    expect(page, "#videos li").to_have_count(3)
    expect(page, "#videos .badge.completed").to_have_count(2)
    expect(page, "#videos li.current").to_contain_text("seed 3")
    page.locator("#videos .open", has_text="seed 1").click()
    eventually(lambda: size(page, "result"))
    service.backend.hold = False
    # The list is updated for videos that are not selected.
    expect(page, "#videos .badge.completed").to_have_count(3)
    page.locator("#videos li", has_text="seed 2").get_by_text("Delete").click()
    expect(page, "#videos li").to_have_count(2)


def test_subject_is_finetuned_used_and_deleted(served, visit, photo_file, eventually):
    service = served()
    service.backend.hold = True
    page = open_page(visit, service, eventually)
    page.click("text=Finetune on this person")
    choose_photos(page, photo_file)
    page.fill("#subject-name", "Anna")
    page.click("#finetune")
    expect(page, "#subjects li").to_contain_text("Anna")
    expect(page, "#subjects .badge").to_have_text("In progress · 50 %")
    service.backend.hold = False
    expect(page, "#subjects .badge").to_have_text("Completed")
    expect(page, "#subject option:checked").to_have_text("Anna")
    page.click("#render")
    eventually(lambda: size(page, "result"))
    (video_id,) = service.backend.asked("render")
    (subject_id,) = service.backend.asked("finetune")
    assert service.service.videos.store.folder(video_id).request().subject == subject_id
    page.click("#subjects button")
    expect(page, "#subjects li").to_have_count(0)


def test_key_is_asked_for_and_kept_in_memory_only(served, visit, photo_file, tmp_path, eventually):
    key = Keys(tmp_path / "keys.txt").add("shop")
    service = served(keys=str(tmp_path / "keys.txt"))
    page = visit(service.address, expected=["401 (Unauthorized)"])
    sign_in(page, "dp_wrong")
    playwright.expect(alert(page)).to_contain_text("That is not a valid key.")
    sign_in(page, key)
    eventually(lambda: size(page, "preview"))
    choose_photos(page, photo_file)
    page.click("#render")
    eventually(lambda: size(page, "result"))
    (video_id,) = service.backend.asked("render")
    assert service.service.videos.store.folder(video_id).request().owner == "shop"
    stored = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]")
    assert stored == ["", 0, 0]
    page.reload()
    expect(page, "#sign-in").to_be_visible()
    sign_in(page, key)
    expect(page, "#videos li").to_have_count(1)


def test_api_reference_lists_every_route(served, visit):
    service = served()
    page = visit(service.address)
    page.goto(service.address + "docs")
    routes = page.locator("#routes article h2")
    paths = service.app.openapi()["paths"]
    playwright.expect(routes).to_have_count(sum(len(methods) for methods in paths.values()))
    playwright.expect(routes.filter(has_text="POST/v1/videos")).to_have_count(1)
