"""The OpenAI Python client against the service."""

import warnings

import openai
import pytest

from serve.keys import Keys
from serve.service.store import Store

# The client says of its own videos methods that the service they were made for shuts down.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def connect():
    """A client of a running service; requests go straight into the application."""

    def make(running, key="none"):
        return openai.OpenAI(
            api_key=key,
            base_url="http://127.0.0.1:8000/v1",
            http_client=running.client,
            max_retries=0,
        )

    return make


def test_create_retrieve_list_download_delete(running, connect, finished, photo_file, tmp_path):
    client = connect(running)
    with photo_file.open("rb") as photo:
        created = client.videos.create(prompt="walk towards me", input_reference=photo)
    assert (created.object, created.status) == ("video", "queued")
    finished(running.client, f"/v1/videos/{created.id}")
    video = client.videos.retrieve(created.id)
    assert (video.status, video.progress, video.size) == ("completed", 100, "48x64")
    assert video.error is None
    mine = running.client.get(f"/v1/videos/{created.id}/content").content
    assert client.videos.download_content(created.id).read() == mine
    client.videos.download_content(created.id).write_to_file(tmp_path / "video.mp4")
    assert (tmp_path / "video.mp4").read_bytes() == mine
    for variant in ("thumbnail", "spritesheet"):
        assert client.videos.download_content(created.id, variant=variant).read()
    deleted = client.videos.delete(created.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (created.id, True, "video.deleted")
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(created.id)


def test_client_pagination_visits_every_video(running, connect, photo_file):
    client = connect(running)
    photo = photo_file.read_bytes()
    ids = [client.videos.create(prompt="", input_reference=photo).id for _ in range(5)]
    assert [video.id for video in client.videos.list(limit=2)] == ids[::-1]
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == ids
    assert [video.id for video in client.videos.list(after=ids[1], order="asc")] == ids[2:]


def test_extra_body_passes_motion_and_other_fields(running, connect, photo_file, motion_file):
    client = connect(running)
    motion = client.post(
        "/motions",
        cast_to=dict,
        files={"file": motion_file.read_bytes()},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    created = client.videos.create(
        prompt="",
        input_reference=photo_file,
        size="48x64",
        extra_body={"motion": motion["id"], "preset": "fast", "seed": 3, "align": False},
    )
    folder = Store(running.service.settings.storage).folder(created.id)
    request = folder.request()
    assert (request.preset, request.seed, request.align) == ("fast", 3, False)
    assert folder.motion.exists()


def test_client_parses_errors(make_service, connect, tmp_path, photo_file):
    keys = tmp_path / "keys.txt"
    key = Keys(keys).add("shop")
    running = make_service(keys=str(keys), queue=0, videos_at_once=1)
    running.backend.hold = True
    with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
        connect(running, "wrong").videos.list()
    client = connect(running, key)
    with pytest.raises(openai.BadRequestError) as caught:
        client.videos.create(prompt="", input_reference=photo_file, model="sora-2")
    assert (caught.value.code, caught.value.param) == ("invalid_input", "model")
    client.videos.create(prompt="", input_reference=photo_file)
    with pytest.raises(openai.RateLimitError) as caught:
        client.videos.create(prompt="", input_reference=photo_file)
    assert int(caught.value.response.headers["retry-after"]) >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        running.backend.hold = False
