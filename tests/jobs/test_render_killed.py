"""Catalogue job after SIGKILL."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray import serve as ray_serve

from dreampose import checkpoints
from dreampose.diffusion import generation
from dreampose.io import provenance, video
from dreampose.models import subject
from dreampose.poses import Motion
from jobs.catalog.table import read_catalog
from serve.config import Settings

ROOT = Path(__file__).parents[2]
FPS = 12.5


@pytest.mark.ray
def test_a_job_killed_halfway_with_its_cluster_does_only_the_rest(
    driver, capsys, shop, tiny_recipe, still_motion
):
    checkpoints.save(checkpoints.build(tiny_recipe), shop / "tiny")
    still_motion(24).save(shop / "walk.npz")
    (shop / "catalog.csv").write_text(
        "item,photos,motion,seed,preset\none,a.png,walk.npz,1,balanced\ntwo,b.png,walk.npz,2,balanced\n",
    )
    flags = [
        "--model", shop / "tiny", "--catalog", shop / "catalog.csv", "--out", shop / "out",
        "--no-align", "--replicas", 1, "--chunk-size", 4,
    ]  # fmt: skip
    # Without an address the job starts a cluster of its own, which ends with it.
    command = [sys.executable, *map(str, (ROOT / "jobs" / "render.py", *flags))]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    chunks = shop / "out" / ".work" / "videos"
    with (shop / "log").open("wb") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while len(list(chunks.glob("*/chunks/*.safetensors"))) < 2:
            assert first.poll() is None, (shop / "log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = {path.relative_to(chunks) for path in chunks.glob("*/chunks/*.safetensors")}
    assert 2 <= len(kept) < 12, "killed too late to show anything"
    assert not list((shop / "out").glob("*.mp4"))

    assert driver.again("render", *flags) == 0, capsys.readouterr().err
    manifests = {
        name: json.loads((shop / "out" / f"{name}.json").read_bytes()) for name in ("one", "two")
    }
    rendered = sum(manifest["num_frames_rendered"] for manifest in manifests.values())
    assert rendered <= 48 - 4 * len(kept)
    assert rendered > 0
    # Renderers keep their heartbeats in a hidden folder; no video may be left.
    assert not [path for path in chunks.iterdir() if not path.name.startswith(".")]

    # As if nothing had happened: the same as in this process, in chunks of the same shape.
    pipe = checkpoints.load(shop / "tiny")
    for seed, (name, photo) in enumerate({"one": "a.png", "two": "b.png"}.items(), start=1):
        request = generation.prepare(
            pipe, [video.read_photo(shop / photo)], Motion.load(shop / "walk.npz"),
            preset="balanced", seed=seed, align=False,
        )  # fmt: skip
        frames = [generation.render_frames(pipe, request, range(i, i + 4)) for i in range(0, 24, 4)]
        code = manifests[name]["watermark"]
        provenance.write(shop / "expected.mp4", np.concatenate(frames), FPS, code=code)
        clip = video.read(shop / "out" / f"{name}.mp4")
        assert clip.fps == FPS
        np.testing.assert_array_equal(clip.frames, video.read(shop / "expected.mp4").frames)

    before = (shop / "out" / "one.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert driver.again("render", *flags) == 0
    assert "2 finished before" in capsys.readouterr().out
    assert (shop / "out" / "one.mp4").stat().st_mtime_ns == before


@pytest.mark.ray
def test_a_catalogue_killed_halfway_renders_every_item_once_and_tells_what_is_broken(
    driver, capsys, shop, tiny_recipe, still_motion
):
    base = checkpoints.build(tiny_recipe)
    checkpoints.save(base, shop / "tiny")
    pipe = checkpoints.load(shop / "tiny")
    people = [f"person-{number}" for number in range(6)]
    for number, person in enumerate(people):
        with torch.no_grad():
            pipe.unet.conv_out.bias.add_(0.01)
        photo = np.full((64, 48, 3), 40 * number, np.uint8)
        Image.fromarray(photo).save(shop / f"{person}.png")
        info = subject.describe_subject(base, person, [photo])
        subject.save_subject(shop / "weights" / person, pipe, info)
    for number, length in enumerate((5, 6, 8)):
        still_motion(length).save(shop / f"walk-{number}.npz")
    rows = [
        f"item-{number:02d},person-{number % 6}.png,walk-{number % 3}.npz,person-{number % 6},"
        f"{number},fast\n"
        for number in range(40)
    ]
    rows[7] = rows[7].replace("person-1.png", "half.png")
    rows[31] = rows[31].replace("walk-1.npz", "short.npz")
    (shop / "catalog.csv").write_text("item,photos,motion,subject,seed,preset\n" + "".join(rows))
    flags = [
        "--model", shop / "tiny", "--catalog", shop / "catalog.csv", "--out", shop / "out",
        "--subjects", shop / "weights", "--no-align", "--replicas", 1,
    ]  # fmt: skip

    def finished():
        return {path: path.stat().st_mtime_ns for path in (shop / "out").glob("*.json")}

    driver.kill_when(lambda: len(finished()) >= 12, "render", *flags)
    before = finished()
    assert len(before) < 38, "killed too late to show anything"
    (left,) = ray_serve.status().applications
    assert left.startswith("render-"), "the cluster lives on, and the job's samplers with it"

    code = driver.again("render", *flags)
    text, err = capsys.readouterr()
    assert code == 1, err
    assert f"40 items, {len(before)} finished before, 2 broken" in text
    assert "38 rendered, 2 failed" in text
    assert not ray_serve.status().applications, "samplers are left that nobody needs"
    after = finished()
    assert len(after) == 38
    assert {path: after[path] for path in before} == before, "no item is rendered twice"
    for path in after:
        manifest = json.loads(path.read_bytes())
        number = int(path.stem.removeprefix("item-"))
        assert (manifest["seed"], manifest["subject"]) == (number, f"person-{number % 6}")
        clip = video.read(path.with_suffix(".mp4"))
        assert len(clip.frames) == manifest["num_frames"] == (5, 6, 8)[number % 3]
    with (shop / "out" / "failed.csv").open(newline="") as file:
        reasons = {row["item"]: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"item-07", "item-31"}
    assert reasons["item-07"].startswith("photo: cannot decode")
    assert reasons["item-31"].startswith("motion must hold at least 5 frames")
    videos = shop / "out" / ".work" / "videos"
    assert not [path for path in videos.iterdir() if not path.name.startswith(".")]

    # Mended and fed back, into the same folder.
    shutil.copy(shop / "a.png", shop / "half.png")
    again = read_catalog(
        shop / "out" / "failed.csv",
        settings=Settings(model=str(shop / "tiny"), subjects=str(shop / "weights")),
        preset="exact",
    )
    assert [(item.name, item.preset) for item in again.items] == [("item-07", "fast")]
