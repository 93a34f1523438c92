"""Jobs and the service on a cluster whose head has no CPU and whose autoscaler adds nodes."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from dreampose import checkpoints
from dreampose.io import video
from dreampose.poses import Motion
from tests.cluster import clusters

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
PATIENCE = 900
"""Seconds that a job may take on a busy machine."""
NODE_TYPES = {"cpu": {"CPU": 4}, "gpu": {"CPU": 2, "GPU": 1}}


def run(cluster, *command, expect=0, **environment):
    """Runs a job to its end as somebody with a shell on the head would; gives its output."""
    environment = cluster.environment(DREAMPOSE_MAX_THREADS="1", HF_HUB_OFFLINE="1", **environment)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout + done.stderr


def node_groups(cluster):
    """Node types of the nodes that are up, the head's left out."""
    groups = [node.get("Labels", {}).get("ray.io/node-group") for node in cluster.alive()]
    return sorted(filter(None, groups))


def wait_until_empty(cluster, seconds=180):
    end = time.monotonic() + seconds
    while node_groups(cluster) and time.monotonic() < end:
        time.sleep(2)
    assert node_groups(cluster) == [], "nodes stay although nothing uses them"


def still_motion(path):
    """A motion of six frames in which a square moves."""
    maps = np.zeros((6, 2, 64, 48), np.float32)
    for index in range(6):
        maps[index, :, 16:48, 4 + index : 20 + index] = 0.5
    Motion(
        maps=maps, joints=np.zeros((6, 33, 4), np.float32),
        confidence=np.ones(6, np.float32), fps=12.5,
    ).save(path)  # fmt: skip


def status(client, path):
    try:
        return client.get(path).status_code
    except httpx.HTTPError:
        return 0


def wait_for(condition, process, log):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, log.read_text()[-6000:]
        assert time.monotonic() < end, log.read_text()[-6000:]
        time.sleep(0.5)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three short clips of a square that walks, with exact poses beside them."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for number in range(3):
        frames = np.full((6, 64, 48, 3), 230, np.uint8)
        parts = np.zeros((6, 64, 48), np.uint8)
        uv = np.zeros((6, 64, 48, 2), np.uint8)
        joints = np.zeros((6, 33, 3), np.float32)
        for index in range(6):
            body = (slice(10, 54), slice(8 + 4 * index, 20 + 4 * index))
            frames[index][body] = random.integers(0, 200, 3)
            parts[index][body] = 1 + number
            joints[index, :, 0] = 8 + 4 * index
            joints[index, :, 1] = np.linspace(10, 54, 33)
        path = folder / f"clip{number}.mp4"
        video.write(path, frames, fps=30)
        np.savez(path.with_suffix(".npz"), parts=parts, uv=uv, joints=joints)
    return folder


@pytest.fixture(scope="module")
def recipe_file(tiny_recipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.json"
    path.write_text(json.dumps(tiny_recipe.to_dict()))
    return path


@pytest.fixture(scope="module")
def model(tiny_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoints.save(checkpoints.build(tiny_recipe, seed=0), folder)
    return folder


@pytest.fixture(scope="module")
def growing():
    with clusters.autoscaling(NODE_TYPES, idle_minutes=0.3) as cluster:
        yield cluster


def test_a_job_grows_a_cluster_from_nothing_and_leaves_nothing(
    growing, clips, recipe_file, tmp_path
):
    assert node_groups(growing) == []
    out = tmp_path / "data"
    said = run(
        growing, "jobs/preprocess.py", "--videos", clips, "--out", out,
        "--pose", "catwalk", "--recipe", recipe_file,
    )  # fmt: skip
    assert "3 clips, 0 rejected" in said
    # No GPU came for a stage that has no use for one.
    assert "gpu" not in node_groups(growing)
    wait_until_empty(growing)


@pytest.mark.nodes
def test_training_finetuning_and_rendering_grow_it_too(
    growing, clips, recipe_file, model, tmp_path
):
    data, out = tmp_path / "data", tmp_path / "run"
    frames = ("--videos", clips, "--pose", "catwalk", "--recipe", recipe_file, "--out", data)
    run(growing, "jobs/preprocess.py", *frames)
    # The GPUs are Ray's alone here, and a training would look for real ones.
    said = run(
        growing, "jobs/train.py", "--stage", "vae", "--recipe", recipe_file, "--data", data,
        "--out", out, "--steps", 4, "--workers", 2, "--no-gpus", "--track",
    )  # fmt: skip
    assert "4 steps" in said
    assert "gpu" not in node_groups(growing)

    photo = ROOT / "examples" / "photos" / "skirt.png"
    (tmp_path / "subjects.csv").write_text(f"subject,photos\nanna,{photo}\n")
    said = run(
        growing, "jobs/finetune.py", "--model", model, "--subjects", tmp_path / "subjects.csv",
        "--out", tmp_path / "subjects", "--steps", 2, "--vae-steps", 1,
    )  # fmt: skip
    assert re.search(r"anna +done", said)

    still_motion(tmp_path / "walk.npz")
    catalog = tmp_path / "catalog.csv"
    catalog.write_text(f"item,photos,motion,preset\none,{photo},{tmp_path}/walk.npz,fast\n")
    said = run(
        growing, "jobs/render.py", "--model", model, "--catalog", catalog, "--no-align",
        "--out", tmp_path / "renders",
    )  # fmt: skip
    assert "1 rendered, 0 failed" in said
    wait_until_empty(growing)


@pytest.mark.nodes
def test_synthesis_and_screening_grow_it_too(growing, clips, tmp_path):
    out = tmp_path / "synthetic"
    said = run(
        growing, "jobs/catwalk.py", "--identities", 1, "--motions", "walk", "--frames", 4,
        "--size", "64x48", "--out", out,
    )  # fmt: skip
    assert "1 clips" in said
    said = run(growing, "jobs/screen.py", "--videos", clips, "--out", tmp_path / "screened")
    assert "of 3 videos kept" in said


@pytest.mark.nodes
def test_the_service_answers_before_its_first_gpu_is_there(growing, model, tmp_path):
    wait_until_empty(growing)
    (port,) = clusters.free_ports(1)
    start = (
        f"from ray import serve; serve.start(http_options={{'host': '127.0.0.1', 'port': {port}}})"
    )
    run(growing, "-c", start)
    serve = Path(sys.executable).with_name("serve")
    command = [
        serve, "run", "serve.app", f"model={model}", "threads=1",
        *(f"{name}={tmp_path / name}" for name in ("storage", "motions", "subjects")),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command], cwd=ROOT, stdout=log, stderr=log,
            env=growing.environment(DREAMPOSE_MAX_THREADS="1"),
        )  # fmt: skip
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        wait_for(lambda: status(client, "/healthz") == 200, process, tmp_path / "log")
        still_motion(tmp_path / "walk.npz")
        files = [
            ("input_reference", ("a.png", (ROOT / "examples/photos/skirt.png").read_bytes())),
            ("motion", ("walk.npz", (tmp_path / "walk.npz").read_bytes())),
        ]
        created = client.post("/v1/videos", data={"preset": "fast", "align": "false"}, files=files)
        path = f"/v1/videos/{created.raise_for_status().json()['id']}"
        wait_for(
            lambda: client.get(path).json()["status"] == "completed", process, tmp_path / "log"
        )
        assert "gpu" in node_groups(growing)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    wait_until_empty(growing)


def test_what_no_node_type_holds_is_refused_with_the_sizes(growing, clips, recipe_file, tmp_path):
    said = run(
        growing, "jobs/preprocess.py", "--videos", clips, "--out", tmp_path / "data",
        "--pose", "catwalk", "--recipe", recipe_file, "--cpus-per-worker", "8", expect=2,
    )  # fmt: skip
    assert re.search(r"preprocess asks for 1 × \{CPU: 8.*\} beside 0\.25 CPUs", said), said
    assert "up to 2 × cpu {CPU: 4}" in said
