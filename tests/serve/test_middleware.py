"""Authentication, rate limits and body limits."""

import asyncio
import stat
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dreampose.errors import InputError
from serve import keys as keys_module
from serve.application import Ingress
from serve.keys import Keys
from serve.service.limits import RateLimiter
from serve.service.request_errors import RequestError

HERE = ("127.0.0.1", 50000)
THERE = ("10.0.0.7", 50000)


def client_of(running, *, client, host="127.0.0.1:8000"):
    """A client at another address."""
    return TestClient(running.app, base_url=f"http://{host}", client=client)


@pytest.fixture
def shops(tmp_path):
    """A key file with two keys, and the keys."""
    keys = Keys(tmp_path / "keys.txt")
    return keys.path, {name: keys.add(name) for name in ("red", "blue")}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def test_keys_are_stored_as_hashes(shops):
    path, keys = shops
    text = path.read_text()
    assert not any(key in text or key.removeprefix("dp_") in text for key in keys.values())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = Keys(path)
    assert {name: known.owner(key) for name, key in keys.items()} == {"red": "red", "blue": "blue"}
    for wrong in ("", "dp_", keys["red"][:-1], keys["red"] + "x", "ü", text.split()[1]):
        assert known.owner(wrong) is None


def test_keys_change_while_the_service_runs(make_service, shops, capsys):
    path, keys = shops
    running = make_service(keys=str(path))
    assert keys_module.main(["add", "green", "--file", str(path)]) == 0
    green = capsys.readouterr().out.strip()
    assert running.client.get("/v1/videos", headers=bearer(green)).status_code == 200
    assert keys_module.main(["remove", "green", "--file", str(path)]) == 0
    assert running.client.get("/v1/videos", headers=bearer(green)).status_code == 401
    assert running.client.get("/v1/videos", headers=bearer(keys["red"])).status_code == 200
    assert keys_module.main(["add", "red", "--file", str(path)]) == 2
    assert keys_module.main(["remove", "green", "--file", str(path)]) == 2
    assert keys_module.main(["list", "--file", str(path)]) == 0
    assert capsys.readouterr().out.split() == ["red", "blue"]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/motions", "/v1/subjects", "/v1/models"])
def test_requests_without_valid_key_are_rejected(make_service, shops, path):
    running = make_service(keys=str(shops[0]))
    for headers in ({}, bearer("dp_wrong"), {"Authorization": f"Basic {shops[1]['red']}"}):
        answer = running.client.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert running.client.get("/healthz").status_code == 200


def test_missing_or_broken_key_file_denies_access(make_service, shops, tmp_path):
    with pytest.raises(InputError, match="keys must be an existing file"):
        make_service(keys=str(tmp_path / "none.txt"))
    running = make_service(keys=str(shops[0]))
    shops[0].write_text("red\n")
    answer = running.client.get("/v1/videos", headers=bearer(shops[1]["red"]))
    assert answer.status_code == 503


def test_keys_see_only_their_own_objects(make_service, shops, post, motion_file, photo_file):
    running = make_service(keys=str(shops[0]))
    red, blue = (bearer(shops[1][name]) for name in ("red", "blue"))
    client = running.client
    video_id = post(client, headers=red).json()["id"]
    motion = client.post(
        "/v1/motions", files={"file": motion_file.read_bytes()}, headers=red
    ).json()["id"]
    subject = client.post(
        "/v1/subjects", files={"photos": photo_file.read_bytes()}, headers=red
    ).json()["id"]
    for path in (f"videos/{video_id}", f"motions/{motion}", f"subjects/{subject}"):
        assert client.get(f"/v1/{path}", headers=red).status_code == 200
        assert client.get(f"/v1/{path}", headers=blue).status_code == 404
        assert client.delete(f"/v1/{path}", headers=blue).status_code == 404
        listed = client.get(f"/v1/{path.split('/')[0]}", headers=blue).json()
        assert listed["data"] == []
    files = [("input_reference", photo_file.read_bytes())]
    for field in ({"motion": motion}, {"subject": subject}):
        assert client.post("/v1/videos", data=field, files=files, headers=blue).status_code == 400
    # The same motion is kept once, and stays while one of them wants it.
    again = client.post("/v1/motions", files={"file": motion_file.read_bytes()}, headers=blue)
    assert again.json()["id"] == motion
    assert client.delete(f"/v1/motions/{motion}", headers=red).status_code == 200
    assert client.get(f"/v1/motions/{motion}", headers=red).status_code == 404
    assert client.get(f"/v1/motions/{motion}", headers=blue).status_code == 200


def test_without_keys_only_loopback_clients_are_served(running, make_service):
    refused = [
        client_of(running, client=THERE).get("/v1/videos"),
        client_of(running, client=HERE, host="shop.example").get("/v1/videos"),
        running.client.get("/v1/videos", headers={"X-Forwarded-For": "10.0.0.7"}),
    ]
    for answer in refused:
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == "not_open"
    for host in ("localhost:8000", "[::1]:8000", "127.0.0.2"):
        assert client_of(running, client=HERE, host=host).get("/v1/videos").status_code == 200
    assert client_of(running, client=("::1", 1)).get("/v1/videos").status_code == 200
    guarded = make_service(open=True)
    assert client_of(guarded, client=THERE).get("/v1/videos").status_code == 200


def test_full_queue_is_reported_before_the_body_is_read(make_service, post, eventually):
    running = make_service(queue=2, videos_at_once=1)
    running.backend.hold = True
    accepted = [post(running.client) for _ in range(3)]
    assert [answer.status_code for answer in accepted] == [200] * 3
    # A body that would be refused for itself, were it read.
    full = running.client.post("/v1/videos", content=b"x" * 1000)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["type"] == "rate_limit_error"
    running.client.delete(f"/v1/videos/{accepted[2].json()['id']}")
    eventually(lambda: post(running.client).status_code == 200)
    assert max(running.metrics.gauges["dreampose_queue_depth"]) == 2
    assert running.metrics.counts["dreampose_refused", "rate_limit_exceeded"] >= 1


def test_unfinished_videos_per_key_are_limited(make_service, shops, post):
    running = make_service(keys=str(shops[0]), videos_per_key=2)
    running.backend.hold = True
    red, blue = (bearer(shops[1][name]) for name in ("red", "blue"))
    assert [post(running.client, headers=red).status_code for _ in range(3)] == [200, 200, 429]
    assert post(running.client, headers=blue).status_code == 200


def last_of_list(client, video_id):
    listed = client.get("/v1/videos", params={"limit": 1}).raise_for_status().json()["data"]
    return next(state for state in listed if state["id"] == video_id)


def retrieved(client, video_id):
    return client.get(f"/v1/videos/{video_id}").raise_for_status().json()


@pytest.mark.parametrize("ask", [retrieved, last_of_list])
def test_capacity_is_free_once_the_end_is_visible(make_service, post, eventually, monkeypatch, ask):
    """Even if the renderer returns long after writing the final state."""
    running = make_service(videos_per_key=1)
    render = running.backend.render

    async def slow_to_answer(path):
        state = await render(path)
        await asyncio.sleep(0.3)
        return state

    monkeypatch.setattr(running.backend, "render", slow_to_answer)
    for count in (1, 2):
        video_id = post(running.client).raise_for_status().json()["id"]
        eventually(lambda asked=video_id: ask(running.client, asked)["status"] == "completed")
        assert running.metrics.counts["dreampose_videos", "completed"] == count


def test_rate_limit_refills_per_name():
    now = [100.0]
    rate = RateLimiter(lambda: 60, "uploads", clock=lambda: now[0])
    for _ in range(60):
        rate.take("red")
    with pytest.raises(RequestError, match="limit of 60 uploads per minute") as refused:
        rate.take("red")
    assert refused.value.retry_after == 1
    rate.take("blue")
    now[0] += 2.0
    rate.take("red")
    rate.take("red")
    with pytest.raises(RequestError):
        rate.take("red")


def test_limits_change_without_a_restart(make_service, post):
    running = make_service(posts_per_minute=1)
    assert [post(running.client).status_code for _ in range(2)] == [200, 429]
    assert running.client.get("/v1/videos").status_code == 200
    running.service.reconfigure({"requests_per_minute": 1})
    # A bucket that is fuller than it may be now is emptied to that.
    assert [running.client.get("/v1/videos").status_code for _ in range(2)] == [200, 429]
    running.service.reconfigure({"requests_per_minute": 1000, "queue": 0, "videos_per_key": 1})
    assert running.service.live.limits.queue == 0
    for wrong in ({"queue": -1}, {"quue": 3}, {"model": "x"}):
        with pytest.raises(InputError, match="must be a limit"):
            running.service.reconfigure(wrong)
    assert running.service.live.limits.queue == 0


def test_invalid_user_config_keeps_the_ingress_running(running, caplog):
    """An exception would make Serve replace the replica again and again."""
    deployment: Any = Ingress
    ingress = object.__new__(deployment.func_or_class)
    ingress.service, ingress.configured = running.service, False
    with pytest.raises(InputError, match="quue"):
        asyncio.run(ingress.reconfigure({"quue": 3}))
    asyncio.run(ingress.reconfigure({"queue": 3}))
    asyncio.run(ingress.reconfigure({"quue": 4}))
    assert running.service.live.limits.queue == 3
    assert "limits are unchanged: quue must be a limit" in caplog.text


def test_large_body_is_rejected_while_it_arrives(make_service, photo_file):
    running = make_service(max_upload_mb=1)
    answer = running.client.post("/v1/videos", files={"input_reference": b"x" * (2 * 2**20)})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    sent = []

    def parts():
        """A body without a declared length."""
        head = 'Content-Disposition: form-data; name="motion"; filename="m"\r\n\r\n'
        yield f"--b\r\n{head}".encode()
        for _ in range(64):
            sent.append(2**16)
            yield b"x" * 2**16

    answer = running.client.post(
        "/v1/videos", content=parts(), headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_slow_body_times_out(make_service):
    running = make_service(upload_timeout_s=0.2)

    async def slow_upload():
        import asyncio

        answers = []

        async def receive():
            await asyncio.sleep(3600)

        async def send(message):
            answers.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/videos", "raw_path": b"/v1/videos",
            "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(b"host", b"localhost"),
                        (b"content-type", b"multipart/form-data; boundary=b")],
            "client": HERE, "server": ("127.0.0.1", 8000), "asgi": {"version": "3.0"},
        }  # fmt: skip
        await asyncio.wait_for(running.app(scope, receive, send), 30)
        return answers[0]["status"]

    assert running.client.portal.call(slow_upload) == 408


def test_probes_report_storage_and_backend(running, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.api.health.PROBE_SECONDS", -1)
    assert running.client.get("/healthz").json() == {"status": "ok"}
    assert running.client.get("/readyz").json() == {"status": "ok"}
    running.backend.broken = RuntimeError("no sampler at /secret/place")
    answer = running.client.get("/readyz")
    assert answer.status_code == 503
    assert "secret" not in answer.text
    assert running.client.get("/healthz").status_code == 200
    running.backend.broken = None
    storage = running.service.videos.store.root
    if storage.exists():
        storage.rmdir()
    storage.write_text("a file in the way")
    assert running.client.get("/healthz").status_code == 503
    assert running.client.get("/readyz").status_code == 503
