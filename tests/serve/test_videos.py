"""The videos API with a fake backend."""

import io

import pytest
from PIL import Image

from dreampose.io import video
from serve.service.store import Store, VideoFolder


def test_post_poll_fetch(running, post, finished, motion_file, tmp_path):
    answer = post(running.client, motion=motion_file, seed="7", preset="fast", prompt="a walk")
    assert answer.status_code == 200, answer.text
    created = answer.json()
    assert (created["object"], created["seed"], created["preset"]) == ("video", 7, "fast")
    assert (created["size"], created["seconds"], created["prompt"]) == ("48x64", "0.8", None)
    assert created["warnings"] == [
        "prompt is ignored: the video follows from photo and motion alone"
    ]
    state = finished(running.client, f"/v1/videos/{created['id']}")
    assert (state["status"], state["progress"]) == ("completed", 100), state
    assert state["expires_at"] - state["completed_at"] == 7 * 24 * 3600
    content = running.client.get(f"/v1/videos/{created['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    (tmp_path / "video.mp4").write_bytes(content.content)
    assert len(video.read(tmp_path / "video.mp4").frames) == 10
    part = running.client.get(f"/v1/videos/{created['id']}/content", headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, content.content[:10])


def test_request_fields_reach_the_renderer(running, post, motion_file):
    running.backend.hold = True
    created = post(
        running.client, motion=motion_file, photos=3, align="false", seconds="0.5", seed="3"
    ).json()
    folder = Store(running.service.settings.storage).folder(created["id"])
    request = folder.request()
    assert (request.align, request.seconds, request.seed) == (False, 0.5, 3)
    assert request.timeout_s == 3600
    assert len(folder.photos) == 3
    assert folder.motion.read_bytes() == motion_file.read_bytes()
    assert created["seconds"] == "0.48"


def test_size_is_validated(make_service, post, motion_video, motion_file):
    running = make_service(max_scale=3)
    created = post(running.client, motion=motion_video, size="96x64").json()
    assert created["size"] == "96x64"
    assert Store(running.service.settings.storage).folder(created["id"]).request().size == (64, 96)
    same = post(running.client, motion=motion_file, size="48x64").json()
    assert Store(running.service.settings.storage).folder(same["id"]).request().size is None
    larger = post(running.client, motion=motion_file, size="72x96")
    assert larger.json()["size"] == "72x96"
    for size, motion, sentence in (
        ("96x64", motion_file, "motion must have the frames' aspect 64x96, got 64x48"),
        ("50x64", motion_video, "multiple of 8"),
        ("16x64", motion_video, "sides of at least 24 and at most 9216 pixels in all"),
        ("96x104", motion_video, "at most 9216 pixels in all, got 96x104"),
        ("64", motion_video, "must be WIDTHxHEIGHT, such as 48x64"),
    ):
        answer = post(running.client, motion=motion, size=size)
        assert answer.status_code == 400
        assert sentence in answer.json()["error"]["message"]


def test_thumbnail_and_spritesheet(running, post, finished):
    video_id = post(running.client).json()["id"]
    finished(running.client, f"/v1/videos/{video_id}")
    path = f"/v1/videos/{video_id}/content"
    thumbnail = running.client.get(path, params={"variant": "thumbnail"})
    sheet = running.client.get(path, params={"variant": "spritesheet"})
    with Image.open(io.BytesIO(thumbnail.content)) as image:
        assert (image.format, image.size) == ("WEBP", (48, 64))
    with Image.open(io.BytesIO(sheet.content)) as image:
        # Ten frames, five to a row.
        assert (image.format, image.size) == ("JPEG", (5 * 48, 2 * 64))
    assert running.client.get(path, params={"variant": "poster"}).status_code == 400


def test_content_of_unfinished_video_is_a_conflict(running, post):
    running.backend.hold = True
    video_id = post(running.client).json()["id"]
    answer = running.client.get(f"/v1/videos/{video_id}/content")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "not_completed"


def test_pagination_in_both_orders(running, post):
    ids = [post(running.client).json()["id"] for _ in range(5)]

    def pages(order, **first):
        after, found = first, []
        while True:
            page = running.client.get("/v1/videos", params={"limit": 2, "order": order} | after)
            body = page.raise_for_status().json()
            found += [item["id"] for item in body["data"]]
            assert body["first_id"] == body["data"][0]["id"]
            if not body["has_more"]:
                return found
            after = {"after": body["last_id"]}

    assert pages("asc") == ids
    assert pages("desc") == ids[::-1]
    running.client.delete(f"/v1/videos/{ids[2]}").raise_for_status()
    # A cursor stays good when what it names is gone.
    assert pages("asc", after=ids[2]) == ids[3:]
    assert pages("desc", after=ids[2]) == ids[1::-1]
    for limit in ("0", "101", "x"):
        assert running.client.get("/v1/videos", params={"limit": limit}).status_code == 400


def test_deleting_a_video_stops_it_and_removes_all_files(running, post, eventually):
    running.backend.hold = True
    video_id = post(running.client).json()["id"]
    eventually(lambda: running.backend.asked("render"))
    answer = running.client.delete(f"/v1/videos/{video_id}")
    assert answer.json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    for path in ("", "/content", "/events"):
        assert running.client.get(f"/v1/videos/{video_id}{path}").status_code == 404
    eventually(lambda: running.backend.at_once == 0)
    folder = Store(running.service.settings.storage).folder(video_id)
    eventually(lambda: not folder.path.exists())
    assert running.client.get("/v1/videos").json()["data"] == []
    assert running.client.delete(f"/v1/videos/{video_id}").status_code == 404


def test_video_removed_during_a_read_is_not_found(running, post, monkeypatch):
    video_id = post(running.client).json()["id"]

    def gone(folder):
        raise FileNotFoundError(folder.path)

    monkeypatch.setattr(VideoFolder, "video", gone)
    assert running.client.get(f"/v1/videos/{video_id}").status_code == 404
    assert running.client.get(f"/v1/videos/{video_id}/content").status_code == 404
    assert running.client.get("/v1/videos").json()["data"] == []


def test_deleted_waiting_video_is_never_rendered(make_service, post, eventually):
    running = make_service(videos_at_once=1)
    running.backend.hold = True
    first, second, third = (post(running.client).json()["id"] for _ in range(3))
    running.client.delete(f"/v1/videos/{second}").raise_for_status()
    running.backend.hold = False
    eventually(lambda: len(running.backend.asked("render")) == 2)
    assert running.backend.asked("render") == [first, third]
    assert running.backend.most_at_once == 1


def test_restart_resumes_unfinished_videos(make_service, post, finished, eventually):
    first = make_service()
    first.backend.hold = True
    video_id = post(first.client).json()["id"]
    gone = post(first.client).json()["id"]
    eventually(lambda: len(first.backend.asked("render")) == 2)
    # As if the process had died before it could take the files away.
    Store(first.service.settings.storage).folder(gone).mark_deleted()
    second = make_service()
    assert finished(second.client, f"/v1/videos/{video_id}")["status"] == "completed"
    assert second.backend.asked("render") == [video_id]
    assert not Store(second.service.settings.storage).folder(gone).path.exists()


def test_unreadable_video_does_not_block_others(make_service, post, finished, eventually):
    first = make_service()
    first.backend.hold = True
    broken, video_id = (post(first.client).json()["id"] for _ in range(2))
    eventually(lambda: len(first.backend.asked("render")) == 2)
    folder = Store(first.service.settings.storage).folder(broken)
    (folder.path / "request.json").write_text('{"of": "a later version"}')
    second = make_service()
    assert finished(second.client, f"/v1/videos/{video_id}")["status"] == "completed"
    assert second.client.get(f"/v1/videos/{broken}").status_code == 404


def test_renderer_error_fails_only_that_video(running, post, finished):
    running.backend.broken = RuntimeError("no such kernel")
    video_id = post(running.client).json()["id"]
    state = finished(running.client, f"/v1/videos/{video_id}")
    assert state["status"] == "failed"
    assert state["error"]["code"] == "render_failed"
    running.backend.broken = None
    other = post(running.client).json()["id"]
    assert finished(running.client, f"/v1/videos/{other}")["status"] == "completed"


def test_storage_outage_does_not_lose_final_states(
    running, post, finished, eventually, monkeypatch
):
    monkeypatch.setattr("serve.service.store.FIRST_RETRY_SECONDS", 0.01)
    pauses = {"fail": 3, "update": 2}

    def pausing(name):
        write = getattr(VideoFolder, name)

        def attempt(self, *args, **kwargs):
            if pauses[name]:
                pauses[name] -= 1
                raise OSError("storage is away")
            return write(self, *args, **kwargs)

        monkeypatch.setattr(VideoFolder, name, attempt)

    running.backend.broken = RuntimeError("no such kernel")
    for name in pauses:
        pausing(name)
    video_id = post(running.client).json()["id"]
    state = finished(running.client, f"/v1/videos/{video_id}")
    assert (state["status"], state["error"]["code"]) == ("failed", "render_failed")
    assert pauses == {"fail": 0, "update": 0}
    # A video that storage never takes holds up nobody.
    monkeypatch.setattr("serve.service.store.STORAGE_RETRY_SECONDS", 0.0)
    pauses["fail"] = 10**9
    post(running.client)
    eventually(lambda: not running.service.videos.tasks)
    running.backend.broken = None
    other = post(running.client).json()["id"]
    assert finished(running.client, f"/v1/videos/{other}")["status"] == "completed"


def test_expired_video_is_removed(make_service, post, finished):
    running = make_service(keep_hours=1e-6)
    video_id = post(running.client).json()["id"]

    def gone():
        return running.client.get(f"/v1/videos/{video_id}").status_code == 404

    while not gone():
        pass
    folder = Store(running.service.settings.storage).folder(video_id).path
    while folder.exists():  # the service's own sweep may be removing it
        running.client.portal.call(running.service.videos.sweep)
    assert running.client.get("/v1/videos").json()["data"] == []


def test_short_motion_gives_a_warning(running, post, motion_file):
    created = post(running.client, motion=motion_file, seconds="4").json()
    assert created["seconds"] == "0.8"
    assert "motion lasts 0.8 s" in created["warnings"][0]


def test_motion_is_required_without_a_default(make_service, post, tmp_path):
    running = make_service(default_motion="")
    answer = post(running.client)
    assert answer.status_code == 400
    assert "motion must be given" in answer.json()["error"]["message"]
    (tmp_path / "half.npz").write_bytes(b"PK\x03\x04")
    running = make_service(default_motion=str(tmp_path / "half.npz"))
    assert "the default one: motion must be" in post(running.client).json()["error"]["message"]


def test_urls_are_rejected_and_unknown_fields_give_warnings(running, photo_file, post):
    created = post(running.client, loudness="11").json()
    assert created["warnings"] == ["loudness is not a field and is ignored"]
    answer = running.client.post(
        "/v1/videos",
        data={"input_reference[image_url]": "http://127.0.0.1/secret.png"},
        files={"input_reference": ("x", photo_file.read_bytes())},
    )
    assert answer.status_code == 400
    assert "not fetched" in answer.json()["error"]["message"]
    answer = running.client.post(
        "/v1/videos",
        data={"motion": "http://127.0.0.1/secret.mp4"},
        files={"input_reference": ("x", photo_file.read_bytes())},
    )
    assert answer.status_code == 400
    assert "URLs are not fetched" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/videos/x/y"])
def test_errors_share_one_schema(running, path):
    for answer in (running.client.get(path), running.client.put(path)):
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}


def test_finished_state_includes_expiry(running, post, finished, monkeypatch):
    """Even before the queue has written it."""
    update = VideoFolder.update

    def forgetful(folder, **changes):
        return folder.video() if "expires_at" in changes else update(folder, **changes)

    monkeypatch.setattr(VideoFolder, "update", forgetful)
    created = post(running.client).json()
    state = finished(running.client, f"/v1/videos/{created['id']}")
    assert state["expires_at"] == state["completed_at"] + 7 * 24 * 3600
    assert running.client.get("/v1/videos").json()["data"] == [state]


def test_unreadable_video_is_resumed_once_readable(make_service, post, finished, eventually):
    first = make_service()
    first.backend.hold = True
    created = post(first.client).json()
    folder = first.service.videos.store.folder(created["id"])
    eventually(lambda: folder.video().progress == 40)
    state = folder.path / "video.json"
    content = state.read_bytes()
    state.write_bytes(b"")
    second = make_service()
    path = f"/v1/videos/{created['id']}"
    second.client.portal.call(second.service.videos.sweep)
    assert second.client.get(path).status_code == 404
    state.write_bytes(content)
    second.client.portal.call(second.service.videos.sweep)
    assert finished(second.client, path)["status"] == "completed"
    second.client.portal.call(second.service.videos.sweep)
    assert second.backend.asked("render") == [created["id"]]
    assert len(second.client.get("/v1/videos").json()["data"]) == 1
    first.backend.hold = False


def test_head_requests_have_no_body(running, post, finished):
    path = f"/v1/videos/{post(running.client).json()['id']}"
    finished(running.client, path)
    whole = running.client.get(f"{path}/content")
    head = running.client.head(f"{path}/content")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))
    motion = running.client.head("/v1/motions/default/preview")
    assert (motion.status_code, motion.headers["content-type"]) == (200, "video/mp4")


def test_openapi_documents_error_responses(running):
    document = running.client.get("/openapi.json").json()
    answers = document["paths"]["/v1/videos"]["post"]["responses"]
    assert {"200", "4XX", "429", "5XX"} == answers.keys()
    assert "Retry-After" in answers["429"]["headers"]
    refused = running.client.post("/v1/videos", data={"seed": "x"}).json()["error"]
    assert refused.keys() == document["components"]["schemas"]["ErrorDetail"]["properties"].keys()


def test_openapi_documents_all_routes(running):
    paths = running.client.get("/openapi.json").json()["paths"]
    assert {"get", "post"} <= paths["/v1/videos"].keys()
    assert {"get", "delete"} <= paths["/v1/videos/{video_id}"].keys()
    assert {
        "/v1/videos/{video_id}/content", "/v1/videos/{video_id}/events",
        "/v1/motions/{motion_id}", "/v1/subjects/{subject_id}", "/healthz", "/readyz",
    } <= paths.keys()  # fmt: skip
