"""Fixtures of the job tests: small clips and killable drivers."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreampose.io import video
from dreampose.poses import Motion

JOBS = Path(__file__).parents[2] / "jobs"
PATIENCE = 1500
"""Seconds to wait for something that a job does in a few, on a machine that has time."""


def _draw_clip(path, *, seed, num_frames=6, height=64, width=48):
    """A figure that walks across the picture and, beside it, the catwalk's ground truth of it."""
    random = np.random.default_rng(seed)
    frames = np.full((num_frames, height, width, 3), 230, np.uint8)
    parts = np.zeros((num_frames, height, width), np.uint8)
    uv = np.zeros((num_frames, height, width, 2), np.uint8)
    joints = np.zeros((num_frames, 33, 3), np.float32)
    colour = random.integers(0, 200, 3)
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(num_frames):
        left = width // 6 + index * (width // 2) // num_frames
        body = (slice(height // 6, -height // 6), slice(left, left + width // 4))
        frames[index][body] = colour
        parts[index][body] = 1 + seed % 24
        uv[index][body] = (np.stack([columns / width, rows / height], axis=-1)[body] * 255).round()
        joints[index, :, 0] = left
        joints[index, :, 1] = np.linspace(height // 6, 5 * height // 6, 33)
    video.write(path, frames, fps=30)
    np.savez(Path(path).with_suffix(".npz"), parts=parts, uv=uv, joints=joints)


@pytest.fixture
def tiny_json(tiny_recipe, tmp_path):
    """The tiny recipe as a file, for `--recipe`."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(tiny_recipe.to_dict()))
    return path


@pytest.fixture
def save_pngs():
    """Writes frames as pictures into a new folder."""

    def save(folder, frames):
        folder.mkdir(parents=True)
        for index, frame in enumerate(frames):
            # Not padded with zeros: 10 must still come after 9.
            Image.fromarray(frame).save(folder / f"frame{index}.png")

    return save


@pytest.fixture
def draw_clip():
    """Writes a clip with exact poses beside it."""
    return _draw_clip


@pytest.fixture
def clips(tmp_path):
    """Five clips in two folders."""
    for index, folder in enumerate(["a", "a", "a", "b", "b"]):
        (tmp_path / "clips" / folder).mkdir(parents=True, exist_ok=True)
        _draw_clip(tmp_path / "clips" / folder / f"clip{index}.mp4", seed=index)
    return tmp_path / "clips"


@pytest.fixture(scope="session")
def recipe_only_model(tiny_recipe, tmp_path_factory):
    """A model folder that holds the recipe alone."""
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"recipe": tiny_recipe.to_dict()}))
    return folder


def _still_motion(num_frames=10):
    """A motion without a person: a square that stands still."""
    maps = np.zeros((num_frames, 2, 64, 48), np.float32)
    maps[:, :, 10:50, 10:30] = 0.5
    return Motion(
        maps=maps,
        joints=np.zeros((num_frames, 3, 4), np.float32),
        confidence=np.ones(num_frames, np.float32),
        fps=12.5,
    )


@pytest.fixture
def still_motion():
    """Makes a motion without a person, at 12.5 frames per second."""
    return _still_motion


@pytest.fixture
def shop(tmp_path, tiny_recipe):
    """A folder with photos, motions, a subject and a model's recipe, to write catalogues in."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    _still_motion().save(tmp_path / "walk.npz")
    _still_motion(4).save(tmp_path / "short.npz")
    video.write(tmp_path / "walk.mp4", np.zeros((6, 64, 48, 3), np.uint8), 12.5)
    video.write(tmp_path / "short.mp4", np.zeros((3, 64, 48, 3), np.uint8), 12.5)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "subjects" / "anna").mkdir(parents=True)
    (tmp_path / "subjects" / "anna" / "subject.json").write_text("{}")
    (tmp_path / "model").mkdir()
    index = {"recipe": tiny_recipe.to_dict()}
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    return tmp_path


class Driver:
    """Runs a job in a process of its own, as a user does, to be killed; then once more."""

    def __init__(self, address):
        self._environment = os.environ | {"RAY_ADDRESS": address}

    def start(self, job, *flags):
        """Starts a job; the process is a group leader, so that nothing of it outlives the test."""
        return subprocess.Popen(
            [sys.executable, *map(str, (JOBS / f"{job}.py", *flags))],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )

    def again(self, job, *flags):
        """Runs a job to its end in this process, which spares it the imports; gives the exit code.

        It joins the cluster as a second driver would.
        """
        return importlib.import_module(f"jobs.{job}").main([str(flag) for flag in flags])

    def kill_when(self, reached, job, *flags):
        """Starts a job and kills it with SIGKILL as soon as `reached()` is true."""
        process = self.start(job, *flags)
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                _, err = process.communicate()
                pytest.fail(f"the job ended or stalled before it could be killed:\n{err[-3000:]}")
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def driver(ray_cluster):
    """Runs jobs as processes of their own on the cluster of the tests."""
    return Driver(ray_cluster.get_runtime_context().gcs_address)
