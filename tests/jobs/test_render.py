"""The catalogue job: what it refuses before it starts, what it keeps, what survives a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreampose import checkpoints, generate, video
from dreampose.poses import Motion
from jobs import render
from serve.catalog import Item, read_catalog
from serve.config import Settings
from serve.output import Output

ROOT = Path(__file__).parents[2]
NUM_FRAMES, FPS = 10, 12.5


def motion(num_frames=NUM_FRAMES):
    maps = np.zeros((num_frames, 2, 64, 48), np.float32)
    maps[:, :, 10:50, 10:30] = 0.5
    return Motion(
        maps=maps,
        joints=np.zeros((num_frames, 3, 4), np.float32),
        confidence=np.ones(num_frames, np.float32),
        fps=FPS,
    )


@pytest.fixture
def shop(tmp_path, tiny_recipe):
    """A folder with photos, motions, a subject and a model's recipe, to write catalogues in."""
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        pixels = generator.integers(0, 256, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    motion().save(tmp_path / "walk.npz")
    motion(4).save(tmp_path / "short.npz")
    video.write(tmp_path / "walk.mp4", np.zeros((6, 64, 48, 3), np.uint8), FPS)
    video.write(tmp_path / "short.mp4", np.zeros((3, 64, 48, 3), np.uint8), FPS)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "subjects" / "anna").mkdir(parents=True)
    (tmp_path / "subjects" / "anna" / "subject.json").write_text("{}")
    (tmp_path / "model").mkdir()
    index = {"recipe": tiny_recipe.to_dict()}
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def settings(shop):
    return Settings(model=str(shop / "model"), subjects=str(shop / "subjects"))


def write_catalog(shop, text):
    (shop / "catalog.csv").write_text(text)
    return shop / "catalog.csv"


def run_job(shop, *flags):
    return render.main(
        [
            "--model", str(shop / "model"),
            "--subjects", str(shop / "subjects"),
            "--catalog", str(shop / "catalog.csv"),
            "--out", str(shop / "out"),
            *flags,
        ]
    )  # fmt: skip


GOOD = "item,photos,motion,subject,seed,preset,truth\n"


def test_a_catalogue_is_read_with_its_defaults_and_paths_beside_it(shop):
    catalog = write_catalog(
        shop,
        GOOD
        + "one,a.png;b.png,walk.npz,anna,7,exact,walk.mp4\n"
        + f"two, {shop / 'a.png'} ,walk.mp4,,,,\n",
    )
    one, two = read_catalog(catalog, settings=settings(shop), preset="fast")
    assert one.photos == (shop / "a.png", shop / "b.png")
    assert (one.subject, one.seed, one.preset, one.num_frames) == ("anna", 7, "exact", NUM_FRAMES)
    assert one.truth == shop / "walk.mp4"
    assert (two.subject, two.seed, two.preset, two.num_frames) == ("", 0, "fast", 6)
    assert two.truth is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("item,photos\none,a.png\n", "got no motion"),
        ("", "got no item, photos, motion"),
        ("item,photos,motion\n", "at least one item"),
        ("item,photos,motion,sed\none,a.png,walk.npz,1\n", "got 'sed'"),
        ("item,photos,motion,item\none,a.png,walk.npz,one\n", "each column once"),
        ("item,photos,motion\none,a.png\n", "line 2: a line must have as many cells"),
        ("item,photos,motion\none,a.png,walk.npz,more\n", "line 2: a line must have as many"),
        ("item,photos,motion\none,a.png,walk.npz\none,b.png,walk.npz\n", "line 3: item must be u"),
        ("item,photos,motion\none,a.png,walk.npz\nONE,b.png,walk.npz\n", "line 3: item must be u"),
        ("item,photos,motion\n../one,a.png,walk.npz\n", "line 2: item must be 1 to 100"),
        ("item,photos,motion\n,a.png,walk.npz\n", "line 2: item must be 1 to 100"),
        (GOOD + "one,a.png,walk.npz,berta,,,\n", "must have finetuned weights, got 'berta'"),
        (GOOD + "one,a.png,walk.npz,../anna,,,\n", "line 2: subject must be 1 to 100"),
        ("item,photos,motion\none,none.png,walk.npz\n", "photo must be an existing file"),
        ("item,photos,motion\none,,walk.npz\n", "photos must name at least one"),
        ("item,photos,motion\none,half.png,walk.npz\n", "photo must be a picture"),
        ("item,photos,motion\none,walk.npz,walk.npz\n", "photo must be a picture"),
        ("item,photos,motion\none,a.png,none.npz\n", "motion must be an existing file"),
        ("item,photos,motion\none,a.png,none.mp4\n", "motion must be an existing file"),
        ("item,photos,motion\none,a.png,\n", "motion must be an existing file"),
        ("item,photos,motion\none,a.png,a.png.npz\n", "motion must be an existing file"),
        ("item,photos,motion\none,a.png,empty.mp4\n", "video must be a file"),
        ("item,photos,motion\none,a.png,short.npz\n", "motion must hold at least 5 frames"),
        ("item,photos,motion\none,a.png,short.mp4\n", "motion must hold at least 5 frames"),
        (GOOD + "one,a.png,walk.npz,,-1,,\n", "seed must be a whole number"),
        (GOOD + "one,a.png,walk.npz,,1.5,,\n", "seed must be a whole number"),
        (GOOD + "one,a.png,walk.npz,,,best,\n", "preset must be one of exact"),
        (GOOD + "one,a.png,walk.npz,,,,none.mp4\n", "truth must be an existing file"),
        ('item,photos,motion\none,"a.png,walk.npz\n', "catalog must be a CSV file"),
    ],
)  # fmt: skip
def test_a_bad_catalogue_is_one_sentence_and_exit_code_2(shop, capsys, text, sentence):
    write_catalog(shop, text)
    assert run_job(shop) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (shop / "out").exists()


def test_an_out_that_is_a_file_and_a_model_that_is_none_are_refused(shop, capsys):
    write_catalog(shop, "item,photos,motion\none,a.png,walk.npz\n")
    (shop / "out").write_text("precious")
    assert run_job(shop) == 2
    assert "out must be a folder" in capsys.readouterr().err
    assert (shop / "out").read_text() == "precious"
    (shop / "out").unlink()
    assert run_job(shop, "--model", str(shop / "subjects")) == 2
    assert "model must be a folder with a model_index.json" in capsys.readouterr().err


def finish(output, item):
    """Puts in place what the service would have left for an item."""
    folder = output.take_up(item)
    video.write(folder.result, np.full((item.num_frames, 64, 48, 3), 90, np.uint8), FPS)
    Image.new("RGB", (48, 64)).save(folder.poster)
    folder.update(status="completed", num_frames=item.num_frames, fps=FPS, size="48x64")
    output.publish(item, folder)


@pytest.fixture
def output(shop):
    return Output(shop / "out", settings=settings(shop), align=True, estimator="blazepose")


@pytest.fixture
def item(shop):
    return Item(
        name="one",
        photos=(shop / "a.png",),
        motion=shop / "walk.npz",
        subject="anna",
        seed=3,
        preset="fast",
        truth=shop / "walk.mp4",
        num_frames=NUM_FRAMES,
    )


def test_a_finished_item_is_known_until_one_of_its_inputs_changes(output, item, shop):
    assert not output.is_finished(item)
    finish(output, item)
    assert output.is_finished(item)
    manifest = json.loads((shop / "out" / "one.json").read_bytes())
    assert (manifest["seed"], manifest["num_frames"], manifest["fps"]) == (3, NUM_FRAMES, FPS)
    for change in (
        {"seed": 4},
        {"preset": "exact"},
        {"subject": ""},
        {"photos": (shop / "b.png",)},
    ):
        assert not output.is_finished(replace(item, **change)), change
    (shop / "subjects" / "anna" / "subject.json").write_text("[]")
    again = Output(shop / "out", settings=settings(shop), align=True, estimator="blazepose")
    assert not again.is_finished(item), "finetuned anew"


def test_an_interrupted_item_goes_on_and_a_failed_one_starts_again(output, item):
    folder = output.take_up(item)
    folder.update(status="in_progress")
    folder.write_chunk(range(2), np.zeros((2, 64, 48, 3), np.uint8))
    assert output.take_up(item).finished_frames() == {0, 1}
    folder.update(status="failed", error={"code": "x", "message": "y"})
    state = output.take_up(item).video()
    assert (state.status, state.error) == ("queued", None)


def test_the_page_and_failed_csv_can_be_used(output, item, shop):
    broken = replace(item, name="two", subject="")
    finish(output, item)
    output.write_page([item, broken], {"two": "nobody is in the photo"})
    html = (shop / "out" / "index.html").read_text()
    for path in (shop / "out").glob("media/*"):
        assert path.relative_to(shop / "out").as_posix() in html
    assert len(list((shop / "out").glob("media/*"))) == 3
    with (shop / "out" / "failed.csv").open(newline="") as file:
        assert [(row["item"], row["reason"]) for row in csv.DictReader(file)] == [
            ("two", "nobody is in the photo")
        ]
    (again,) = read_catalog(shop / "out" / "failed.csv", settings=settings(shop), preset="exact")
    assert (again.name, again.seed, again.preset) == ("two", 3, "fast")
    output.write_page([item], {})
    assert not (shop / "out" / "failed.csv").exists()


@pytest.mark.ray
def test_a_job_killed_halfway_does_only_the_rest(shop, tiny_recipe):
    checkpoints.save(checkpoints.build(tiny_recipe), shop / "tiny")
    motion(24).save(shop / "walk.npz")
    write_catalog(
        shop,
        "item,photos,motion,seed,preset\none,a.png,walk.npz,1,exact\ntwo,b.png,walk.npz,2,exact\n",
    )
    command = [
        sys.executable, str(ROOT / "jobs" / "render.py"), "--model", str(shop / "tiny"),
        "--catalog", str(shop / "catalog.csv"), "--out", str(shop / "out"),
        "--no-align", "--replicas", "1", "--chunk-size", "4",
    ]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    chunks = shop / "out" / ".work" / "videos"
    with (shop / "log").open("wb") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        while len(list(chunks.glob("*/chunks/*.npz"))) < 2:
            assert first.poll() is None, (shop / "log").read_text()
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
    kept = {path.relative_to(chunks) for path in chunks.glob("*/chunks/*.npz")}
    assert 2 <= len(kept) < 12, "killed too late to show anything"
    assert not list((shop / "out").glob("*.mp4"))

    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    manifests = {
        name: json.loads((shop / "out" / f"{name}.json").read_bytes()) for name in ("one", "two")
    }
    rendered = sum(manifest["num_frames_rendered"] for manifest in manifests.values())
    assert rendered <= 48 - 4 * len(kept)
    assert rendered > 0
    assert not list(chunks.iterdir())

    # As if nothing had happened: the same as in this process, in chunks of the same shape.
    pipe = checkpoints.load(shop / "tiny")
    for seed, (name, photo) in enumerate({"one": "a.png", "two": "b.png"}.items(), start=1):
        request = generate.prepare(
            pipe, [video.read_photo(shop / photo)], Motion.load(shop / "walk.npz"),
            preset="exact", seed=seed, align=False,
        )  # fmt: skip
        frames = [generate.render_frames(pipe, request, range(i, i + 4)) for i in range(0, 24, 4)]
        video.write(shop / "expected.mp4", np.concatenate(frames), FPS)
        clip = video.read(shop / "out" / f"{name}.mp4")
        assert clip.fps == FPS
        # Replicas may use more threads than this process, which rounds sums otherwise: a grey
        # level here and there. Another seed or order would differ by dozens on average.
        expected = video.read(shop / "expected.mp4").frames.astype(int)
        assert clip.frames.shape == expected.shape
        assert np.abs(clip.frames - expected).mean() < 0.5

    before = (shop / "out" / "one.mp4").stat().st_mtime_ns
    third = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert third.returncode == 0, third.stderr
    assert "2 finished before" in third.stdout
    assert (shop / "out" / "one.mp4").stat().st_mtime_ns == before
