"""A node dies abruptly in each stage of the pipeline: the results are the undisturbed ones."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cluster import spot_notice
from dreampose import checkpoints
from dreampose.io import video
from dreampose.poses import Motion
from tests.cluster import clusters

pytestmark = [pytest.mark.ray, pytest.mark.nodes]

ROOT = Path(__file__).parents[2]
PATIENCE = 1200
"""Seconds that a job may take on a busy machine."""
NODE = {"num_cpus": 1}


class Jobs:
    """Runs jobs on a cluster of three nodes of one CPU beside a head of none."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder

    def start(self, name, *flags):
        environment = self.cluster.environment(DREAMPOSE_MAX_THREADS="1", HF_HUB_OFFLINE="1")
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, f"jobs/{name}.py", *map(str, flags)],
                cwd=ROOT, env=environment, stdout=output, stderr=output,
            )  # fmt: skip
        return process, log

    def finish(self, process, log):
        assert process.wait(PATIENCE) == 0, log.read_text()[-6000:]
        return log.read_text()

    def run(self, name, *flags):
        return self.finish(*self.start(name, *flags))

    def run_and_lose_a_node(self, name, *flags, when, worker):
        """Kills a node that has such a worker once `when()`; the job has to end well."""
        process, log = self.start(name, *flags)
        end = time.monotonic() + PATIENCE
        while not (when() and (nodes := self.cluster.running(worker))):
            assert process.poll() is None, f"it ended before a node died\n{log.read_text()[-6000:]}"
            assert time.monotonic() < end, log.read_text()[-6000:]
            time.sleep(0.05)
        self.cluster.kill(nodes[0])
        said = self.finish(process, log)
        # As many nodes for the next stage.
        self.cluster.add_node(**NODE)
        self.cluster.wait_for_nodes(4)
        return said


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    with clusters.fixed([NODE] * 3) as cluster:
        yield Jobs(cluster, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_recipe):
    """Clips with exact poses, a model, photos and a motion."""
    folder = tmp_path_factory.mktemp("work")
    random = np.random.default_rng(0)
    (folder / "clips").mkdir()
    for number in range(6):
        frames = np.full((24, 128, 96, 3), 230, np.uint8)
        parts = np.zeros((24, 128, 96), np.uint8)
        uv = np.zeros((24, 128, 96, 2), np.uint8)
        joints = np.zeros((24, 33, 3), np.float32)
        for index in range(24):
            body = (slice(20, 108), slice(16 + index, 40 + index))
            frames[index][body] = random.integers(0, 200, 3)
            parts[index][body] = 1 + number
            joints[index, :, 0] = 16 + index
            joints[index, :, 1] = np.linspace(20, 108, 33)
        path = folder / "clips" / f"clip{number}.mp4"
        video.write(path, frames, fps=30)
        np.savez(path.with_suffix(".npz"), parts=parts, uv=uv, joints=joints)
    (folder / "tiny.json").write_text(json.dumps(tiny_recipe.to_dict()))
    checkpoints.save(checkpoints.build(tiny_recipe, seed=0), folder / "model")
    for name in "abcdef":
        pixels = random.integers(0, 256, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    maps = np.zeros((12, tiny_recipe.pose_channels, 64, 48), np.float32)
    for index in range(12):
        maps[index, :, 16:48, 2 + 2 * index : 14 + 2 * index] = 0.5
    Motion(
        maps=maps, joints=np.zeros((12, 33, 4), np.float32),
        confidence=np.ones(12, np.float32), fps=12.5,
    ).save(folder / "walk.npz")  # fmt: skip
    return folder


def weights(folder):
    return {
        f"{path.relative_to(folder)}.{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_weights(got, wanted):
    got, wanted = weights(got), weights(wanted)
    assert wanted
    assert got.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def rows(data):
    found = [row for file in (data / "clips").glob("*.parquet")
             for row in pq.read_table(file).to_pylist()]  # fmt: skip
    return sorted(found, key=lambda row: row["clip_id"])


def test_what_no_node_holds_is_refused(jobs, folder):
    process, log = jobs.start(
        "preprocess", "--videos", folder / "clips", "--pose", "catwalk", "--recipe",
        folder / "tiny.json", "--out", folder / "refused", "--cpus-per-worker", 1,
    )  # fmt: skip
    assert process.wait(PATIENCE) == 2, log.read_text()[-6000:]
    # One CPU is there, but not beside the reads and writes.
    assert "preprocess asks for 1 × {CPU: 1" in log.read_text()


def test_preprocessing_loses_no_more_than_a_clip(jobs, folder):
    flags = ("--videos", folder / "clips", "--pose", "catwalk", "--recipe", folder / "tiny.json")
    data = folder / "data"

    def committed():
        return [f for f in (data / "_done").glob("*.parquet") if ".pending" not in f.name]

    said = jobs.run_and_lose_a_node(
        "preprocess", *flags, "--out", data, when=committed, worker="ray::MapWorker"
    )
    assert "6 clips, 0 rejected" in said
    jobs.run("preprocess", *flags, "--out", folder / "undisturbed")
    got, wanted = rows(data), rows(folder / "undisturbed")
    assert len(got) == 6, "each clip once"
    assert got == wanted


def test_training_goes_on_from_its_checkpoint(jobs, folder):
    flags = (
        "--stage", "vae", "--recipe", folder / "tiny.json", "--data", folder / "data",
        "--steps", 60, "--seed", 3, "--workers", 2, "--checkpoint-every", 10, "--track",
    )  # fmt: skip
    if not (folder / "data").exists():
        jobs.run("preprocess", "--videos", folder / "clips", "--pose", "catwalk", "--recipe",
                 folder / "tiny.json", "--out", folder / "data")  # fmt: skip
    out = folder / "run"
    snapshot = out / "ray" / "checkpoint_manager_snapshot.json"
    said = jobs.run_and_lose_a_node(
        "train", *flags, "--out", out, when=snapshot.exists, worker="ray::RayTrainWorker"
    )
    assert "60 steps" in said
    jobs.run("train", *flags, "--out", folder / "run-undisturbed")
    assert_same_weights(out / "model", folder / "run-undisturbed" / "model")


def test_training_saves_within_the_notice_of_a_node(jobs, folder):
    if not (folder / "data").exists():
        jobs.run("preprocess", "--videos", folder / "clips", "--pose", "catwalk", "--recipe",
                 folder / "tiny.json", "--out", folder / "data")  # fmt: skip
    flags = (
        "--stage", "vae", "--recipe", folder / "tiny.json", "--data", folder / "data",
        "--steps", 1500, "--seed", 3, "--workers", 2, "--checkpoint-every", 1500, "--track",
    )  # fmt: skip
    out = folder / "run-preempted"
    process, log = jobs.start("train", *flags, "--out", out)
    end = time.monotonic() + PATIENCE
    while (
        not (nodes := jobs.cluster.running("ray::RayTrainWorker")) or "step" not in log.read_text()
    ):
        assert process.poll() is None, log.read_text()[-6000:]
        assert time.monotonic() < end, log.read_text()[-6000:]
        time.sleep(0.2)
    node_id = jobs.cluster.node_id(nodes[0])
    command = spot_notice.drain_command(node_id, jobs.cluster.address, 60)
    subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env=jobs.cluster.environment(), check=True,
    )  # fmt: skip
    # No checkpoint is due before the last step: this one is because of the notice.
    while not list(out.glob("ray/checkpoint_2*")):
        assert process.poll() is None, log.read_text()[-6000:]
        time.sleep(0.2)
    jobs.cluster.kill(nodes[0])
    assert "1500 steps" in jobs.finish(process, log)
    jobs.cluster.add_node(**NODE)
    jobs.cluster.wait_for_nodes(4)


def test_finetuning_goes_on_elsewhere(jobs, folder):
    photos = ROOT / "examples" / "photos"
    names = ["dress-front.png", "dress-side.png", "skirt.png", "trousers.png"]
    table = folder / "subjects.csv"
    lines = [f"{Path(name).stem},{photos / name}" for name in names]
    table.write_text("\n".join(["subject,photos", *lines]) + "\n")
    flags = ("--model", folder / "model", "--subjects", table, "--steps", 40, "--vae-steps", 2,
             "--checkpoint-every", 5)  # fmt: skip
    out = folder / "subjects"
    said = jobs.run_and_lose_a_node(
        "finetune", *flags, "--out", out, worker="ray::_do",
        when=lambda: any(out.glob(".*.training/unet/checkpoints/step_*")),
    )  # fmt: skip
    # Ray itself reports the lost task as failed.
    assert said.count(" done") >= len(names)
    jobs.run("finetune", *flags, "--out", folder / "subjects-undisturbed")
    assert_same_weights(out, folder / "subjects-undisturbed")


def test_rendering_repeats_no_more_than_the_chunks_of_the_node(jobs, folder):
    lines = [f"{name},{folder / name}.png,{folder / 'walk.npz'},{number},fast"
             for number, name in enumerate("abcdef")]  # fmt: skip
    catalog = folder / "catalog.csv"
    catalog.write_text("\n".join(["item,photos,motion,seed,preset", *lines]) + "\n")
    flags = ("--model", folder / "model", "--catalog", catalog, "--no-align", "--replicas", 2,
             "--chunk-size", 4)  # fmt: skip
    out = folder / "renders"
    said = jobs.run_and_lose_a_node(
        "render", *flags, "--out", out, worker="Sampler",
        when=lambda: any((out / ".work" / "videos").glob("*/chunks/*")),
    )  # fmt: skip
    assert "6 rendered, 0 failed" in said
    jobs.run("render", *flags, "--out", folder / "renders-undisturbed")
    rendered = 0
    for name in "abcdef":
        rendered += json.loads((out / f"{name}.json").read_bytes())["num_frames_rendered"]
        got = video.read(out / f"{name}.mp4").frames.astype(int)
        wanted = video.read(folder / "renders-undisturbed" / f"{name}.mp4").frames.astype(int)
        assert np.abs(got - wanted).mean() < 1
    assert rendered <= 6 * 12 + 2 * 2 * 4, "more was rendered again than two samplers held"
