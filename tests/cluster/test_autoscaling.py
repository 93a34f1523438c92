"""Jobs and the service on a cluster whose head has no CPU and whose autoscaler adds nodes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dreampose import checkpoints
from dreampose.io import video
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
    # It waited, and said for what; no GPU came for a stage that has no use for one.
    assert "waiting for 1 × {CPU: 0.75}: 0 there; the autoscaler may add nodes" in said
    assert "gpu" not in node_groups(growing)
    wait_until_empty(growing)


def test_what_no_node_type_holds_is_refused_with_the_sizes(growing, clips, recipe_file, tmp_path):
    said = run(
        growing, "jobs/preprocess.py", "--videos", clips, "--out", tmp_path / "data",
        "--pose", "catwalk", "--recipe", recipe_file, "--cpus-per-worker", "8", expect=2,
    )  # fmt: skip
    assert "preprocess asks for 1 × {CPU: 8} beside 0.25 CPUs" in said
    assert "up to 2 × cpu {CPU: 4}" in said
