"""The whole service on a small random model, over HTTP: same frames whatever renders them.

Bitwise the same where chunks are of equal shape; of other shapes, at most one grey level apart.
"""

import socket
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from ray import serve as ray_serve

from cluster.capacity import one_machine
from dreampose import checkpoints
from dreampose.diffusion import generation
from dreampose.io import provenance, video, watermark
from dreampose.poses import Motion
from serve import app
from serve.application import renderer_app, sampler_allocation
from serve.config import Settings
from serve.service.records import RenderRequest
from serve.service.store import Store

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SEED = 3
PATIENCE = 1200
"""Seconds that a render may take on a busy machine."""


@pytest.fixture(scope="module")
def model(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.save(checkpoints.build(tiny_recipe), folder)
    return folder


@pytest.fixture(scope="module")
def service(ray_cluster, model, tmp_path_factory):
    """Three samplers, chunks of eight, over HTTP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    root = tmp_path_factory.mktemp("service")
    settings = Settings(
        model=str(model),
        storage=str(root / "videos"),
        motions=str(root / "motions"),
        subjects=str(root / "subjects"),
        # A photo of noise shows nobody to fit a motion to; whoever wants that posts both.
        default_motion="",
        finetune_steps=2,
        finetune_vae_steps=1,
        replicas=3,
        chunk_size=8,
        threads=1,
        max_tries=20,
    )
    ray_serve.run(app(settings), name="three")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    ray_serve.shutdown()


@pytest.fixture(scope="module")
def reference(model):
    """Renders in this process in chunks of a given size."""
    pipe = checkpoints.load(model)

    def render(photo_file, motion_file, chunk_size, preset):
        request = generation.prepare(
            pipe,
            [video.read_photo(photo_file)],
            Motion.load(motion_file),
            preset=preset,
            seed=SEED,
            align=False,
        )
        starts = range(0, request.num_frames, chunk_size)
        chunks = [range(start, min(start + chunk_size, request.num_frames)) for start in starts]
        return np.concatenate([generation.render_frames(pipe, request, chunk) for chunk in chunks])

    return render


def post(service, photo_file, motion_file, **fields):
    fields = {"seed": str(SEED), "preset": "fast", "align": "false", **fields}
    files = [
        ("input_reference", ("anything.txt", photo_file.read_bytes())),
        ("motion", ("anything.txt", motion_file.read_bytes())),
    ]
    return service.post("/v1/videos", data=fields, files=files)


def finished(service, video_id):
    until = time.monotonic() + PATIENCE
    state = None
    while time.monotonic() < until:
        state = service.get(f"/v1/videos/{video_id}").raise_for_status().json()
        if state["status"] not in ("queued", "in_progress"):
            return state
        time.sleep(0.3)
    raise AssertionError(f"not finished after {PATIENCE} s: {state}")


def assert_shows(tmp_path, content, frames, fps=12.5):
    """Compares the decoded video with watermarked frames."""
    path, expected = tmp_path / "rendered.mp4", tmp_path / "expected.mp4"
    path.write_bytes(content)
    code = provenance.verify(path).tags["watermark"]
    video.write(expected, watermark.embed(frames, code), fps)
    clip = video.read(path)
    assert clip.fps == fps
    np.testing.assert_array_equal(clip.frames, video.read(expected).frames)


def test_post_poll_fetch(service, photo_file, motion_file, tmp_path, reference):
    assert service.get("/healthz").json() == {"status": "ok"}
    assert service.get("/readyz").json() == {"status": "ok"}
    answer = post(service, photo_file, motion_file)
    assert answer.status_code == 200, answer.text
    created = answer.json()
    assert created["object"] == "video"
    assert created["status"] == "queued"
    state = finished(service, created["id"])
    assert (state["status"], state["progress"]) == ("completed", 100), state
    content = service.get(f"/v1/videos/{created['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    expected = reference(photo_file, motion_file, 8, "fast")
    assert_shows(tmp_path, content.content, expected)


def test_replicas_and_chunk_size_do_not_change_frames(
    service, model, photo_file, motion_file, tmp_path, reference
):
    settings = Settings(model=str(model), replicas=1, chunk_size=1, threads=1)
    handle = ray_serve.run(
        renderer_app(settings, sampler_allocation(settings, one_machine(cpus=2))),
        name="one",
        route_prefix=None,
    )
    folder = Store(tmp_path / "videos").create(
        request=RenderRequest(preset="fast", seed=SEED, align=False),
        photos=[photo_file.read_bytes()],
        motion=motion_file.read_bytes(),
        motion_suffix=".npz",
    )
    state = handle.render.remote(str(folder.path)).result(timeout_s=PATIENCE)
    ray_serve.delete("one")
    assert state.status == "completed", state
    single = reference(photo_file, motion_file, 1, "fast")
    chunks_of_eight = reference(photo_file, motion_file, 8, "fast")
    assert_shows(tmp_path, folder.result.read_bytes(), single)
    assert np.abs(single.astype(int) - chunks_of_eight).max() <= 1


def test_render_survives_killed_samplers(service, photo_file, motion_file, tmp_path, reference):
    video_id = post(service, photo_file, motion_file, preset="exact").json()["id"]
    while service.get(f"/v1/videos/{video_id}").json()["num_frames"] is None:
        time.sleep(0.1)
    samplers = [
        entry["name"]
        for entry in ray.util.list_named_actors(all_namespaces=True)
        if entry["name"].startswith("SERVE_REPLICA::three#Sampler")
    ]
    assert len(samplers) == 3
    for name in samplers[:2]:
        ray.kill(ray.get_actor(name, namespace="serve"))
    state = finished(service, video_id)
    assert state["status"] == "completed", state
    content = service.get(f"/v1/videos/{video_id}/content").content
    expected = reference(photo_file, motion_file, 8, "exact")
    assert_shows(tmp_path, content, expected)


def test_invalid_requests_are_rejected_with_messages(service, photo_file, motion_file, tmp_path):
    short = tmp_path / "short.npz"
    Motion.load(motion_file).between(0, 4).save(short)
    text = tmp_path / "text.mp4"
    text.write_text("no video at all")
    for answer, sentence in (
        (post(service, motion_file, motion_file), "photo 1 is not a PNG"),
        (post(service, photo_file, text), "motion must be a video file"),
        (post(service, photo_file, short), "motion must hold at least 5 frames"),
        (post(service, photo_file, motion_file, preset="best"), "preset must be one of"),
        (post(service, photo_file, motion_file, seed="-1"), "seed is not valid"),
        (post(service, photo_file, motion_file, subject="anna"), "has no finetuned weights"),
        (post(service, photo_file, motion_file, model="sora-2"), "model must be 'tiny'"),
        (service.post("/v1/videos", data={"seed": "1"}), "input_reference must hold 1 to 8 photos"),
    ):
        assert answer.status_code == 400, answer.text
        assert sentence in answer.json()["error"]["message"]
    for path in ("/v1/videos/video_0", "/v1/videos/video_0/content"):
        assert service.get(path).status_code == 404
    assert service.get("/v1/videos/..%2f..%2fetc").status_code in (400, 404)


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openai_client_end_to_end(service, photo_file, motion_file, tmp_path, reference):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(api_key="none", base_url=f"{service.base_url}/v1", max_retries=0)
    motion = client.post(
        "/motions",
        cast_to=dict,
        files={"file": motion_file.read_bytes()},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    fields = {"motion": motion["id"], "preset": "fast", "seed": SEED, "align": False}
    created = client.videos.create(prompt="walk", input_reference=photo_file, extra_body=fields)
    finished(service, created.id)
    assert client.videos.retrieve(created.id).status == "completed"
    assert created.id in [video.id for video in client.videos.list(limit=1)]
    content = client.videos.download_content(created.id).read()
    expected = reference(photo_file, motion_file, 8, "fast")
    assert_shows(tmp_path, content, expected)
    assert client.videos.delete(created.id).deleted
    assert service.get(f"/v1/videos/{created.id}").status_code == 404


def test_deleted_video_frees_the_samplers(service, photo_file, tmp_path, motion_file):
    """A hundred frames of a hundred steps would take long."""
    motion = Motion.load(motion_file)
    long = replace(
        motion,
        maps=np.tile(motion.maps, (20, 1, 1, 1)),
        joints=np.tile(motion.joints, (20, 1, 1)),
        confidence=np.tile(motion.confidence, 20),
    )
    long.save(tmp_path / "long.npz")
    video_id = post(service, photo_file, tmp_path / "long.npz", preset="exact").json()["id"]
    lines = []
    with service.stream("GET", f"/v1/videos/{video_id}/events", timeout=PATIENCE) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if line == "event: frame" and "deleted" not in lines:
                service.delete(f"/v1/videos/{video_id}").raise_for_status()
                lines.append("deleted")
    assert lines.count("event: frame") < 200
    assert [line for line in lines if line.startswith("event: ")][-1] == "event: cancelled"
    # Were the other 24 chunks still rendered, this would come after them.
    began = time.monotonic()
    other = post(service, photo_file, motion_file, preset="fast").json()["id"]
    state = finished(service, other)
    assert state["status"] == "completed", state
    rendering = time.monotonic() - began
    assert rendering < PATIENCE / 2


def test_motion_video_without_person_fails(service, photo_file, tmp_path):
    """Uses the extractor, which scales from zero."""
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 48, 3), dtype=np.uint8)
    video.write(tmp_path / "noise.mp4", frames, 12.5)
    video_id = post(service, photo_file, tmp_path / "noise.mp4").json()["id"]
    state = finished(service, video_id)
    assert (state["status"], state["error"]["code"]) == ("failed", "invalid_input"), state
    assert "must show a person" in state["error"]["message"]


def test_subject_is_finetuned_and_used(service, motion_file):
    photo = ROOT / "examples" / "photos" / "skirt.png"
    answer = service.post("/v1/subjects", files={"photos": photo.read_bytes()})
    subject = answer.raise_for_status().json()
    early = post(service, photo, motion_file, subject=subject["id"]).json()
    assert "rendered with the base model" in early["warnings"][0]
    until = time.monotonic() + PATIENCE
    while subject["status"] in ("queued", "in_progress") and time.monotonic() < until:
        time.sleep(0.5)
        subject = service.get(f"/v1/subjects/{subject['id']}").json()
    assert subject["status"] == "completed", subject
    late = post(service, photo, motion_file, subject=subject["id"]).json()
    states = [finished(service, video_id) for video_id in (early["id"], late["id"])]
    assert [state["status"] for state in states] == ["completed"] * 2, states
    assert [state["subject"] for state in states] == ["", subject["id"]]
    early_mp4, late_mp4 = (
        service.get(f"/v1/videos/{state['id']}/content").content for state in states
    )
    assert early_mp4 != late_mp4
