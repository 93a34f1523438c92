"""Catalogue job without Ray: validation and resuming."""

import csv
import hashlib
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dreampose.errors import InputError
from dreampose.io import provenance
from jobs import render
from jobs.catalog.output import Output
from jobs.catalog.table import Item, read_catalog
from serve.config import Settings

ROOT = Path(__file__).parents[2]
NUM_FRAMES, FPS = 10, 12.5


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
    one, two = read_catalog(catalog, settings=settings(shop), preset="fast").items
    assert one.photos == (shop / "a.png", shop / "b.png")
    assert (one.subject, one.seed, one.preset, one.num_frames) == ("anna", 7, "exact", NUM_FRAMES)
    assert one.truth == shop / "walk.mp4"
    assert (two.subject, two.seed, two.preset, two.num_frames) == ("", 0, "fast", 6)
    assert two.truth is None


def test_parquet_and_csv_give_the_same_rows(shop):
    text = GOOD + "one,a.png;b.png,walk.npz,anna,7,exact,walk.mp4\ntwo,a.png,walk.mp4,,,,\n"
    from_csv = read_catalog(write_catalog(shop, text), settings=settings(shop), preset="fast")
    table = pa.table(
        {
            "item": ["one", "two"],
            "photos": [["a.png", "b.png"], ["a.png"]],
            "motion": ["walk.npz", "walk.mp4"],
            "subject": ["anna", None],
            "seed": pa.array([7.0, float("nan")]),  # as pandas writes whole numbers and blanks
            "preset": ["exact", None],
            "truth": ["walk.mp4", None],
        }
    )
    pq.write_table(table, shop / "catalog.parquet")
    assert from_csv == read_catalog(
        shop / "catalog.parquet", settings=settings(shop), preset="fast"
    )
    assert len(from_csv.items) == 2
    (shop / "catalog.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match="catalog: cannot read .* as Parquet"):
        read_catalog(shop / "catalog.parquet", settings=settings(shop), preset="fast")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("item,photos\none,a.png\n", "got no motion"),
        ("", "is an empty file"),
        ("item,photos,motion\n", "at least one item"),
        ("item,photos,motion,sed\none,a.png,walk.npz,1\n", "got 'sed'"),
        ("item,photos,motion,item\none,a.png,walk.npz,one\n", "each column once"),
        ('item,photos,motion\none,"a.png,walk.npz\n', "no CSV"),
    ],
)  # fmt: skip
def test_an_invalid_table_prints_one_line_and_returns_2(shop, capsys, text, sentence):
    write_catalog(shop, text)
    assert run_job(shop) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (shop / "out").exists()


FAULTS = {
    "a.png,walk.npz,berta,,,": "must have finetuned weights, got 'berta'",
    "a.png,walk.npz,../anna,,,": "subject must be 1 to 100",
    "none.png,walk.npz,,,,": "photo: no such file",
    "a.png;.,walk.npz,,,,": "photo: no such file",
    ",walk.npz,,,,": "no photos",
    "half.png,walk.npz,,,,": "photo: cannot decode",
    "walk.npz,walk.npz,,,,": "photo: cannot decode",
    "a.png,none.npz,,,,": "motion must be an existing file",
    "a.png,none.mp4,,,,": "motion must be an existing file",
    "a.png,,,,,": "no motion",
    "a.png,a.png.npz,,,,": "motion must be an existing file",
    "a.png,empty.mp4,,,,": "video: ",
    "a.png,short.npz,,,,": "motion must hold at least 5 frames",
    "a.png,short.mp4,,,,": "motion must hold at least 5 frames",
    "a.png,walk.npz,,-1,,": "seed must be a whole number",
    "a.png,walk.npz,,1.5,,": "seed must be a whole number",
    f"a.png,walk.npz,,{'9' * 5000},,": "seed must be a whole number",
    f"{'a' * 300}.png,walk.npz,,,,": "photo: cannot read",
    "a.png,walk.npz,,,best,": "preset must be one of exact",
    "a.png,walk.npz,,,,none.mp4": "truth must be an existing file",
    "a.png,walk.npz,,,,walk.npz": "video: cannot decode",
}


def test_invalid_items_are_reported_without_ray_and_can_be_used_as_a_catalogue(shop, capsys):
    lines = [f"item-{number},{line}\n" for number, line in enumerate(FAULTS)]
    write_catalog(shop, GOOD + "".join(lines))
    for catalog in (shop / "catalog.csv", shop / "out" / "failed.csv"):
        assert run_job(shop, "--catalog", str(catalog)) == 1
        told = capsys.readouterr().err.splitlines()
        with (shop / "out" / "failed.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["item"] for row in rows] == [f"item-{i}" for i in range(len(FAULTS))]
        for row, line, sentence in zip(rows, told, FAULTS.values(), strict=True):
            assert sentence in row["reason"]
            assert line == f"{row['item']}: {row['reason']}"
    assert rows[0]["photos"] == str(shop / "a.png"), "a catalogue that may lie anywhere"
    assert "0 rendered, 21 failed" in (shop / "out" / "index.html").read_text()


def test_a_line_that_is_wrong_fails_alone(shop, capsys):
    good = read_catalog(
        write_catalog(shop, GOOD + "fine,a.png,walk.npz,,,,\n"),
        settings=settings(shop),
        preset="fast",
    )
    lines = ["fine,a.png,walk.npz,,,,", "more,a.png,walk.npz,,,,,x", "FINE,b.png,walk.npz,,,,",
             "../one,a.png,walk.npz,,,,", ",a.png,walk.npz,,,,", "few,a.png"]  # fmt: skip
    path = write_catalog(shop, GOOD + "\n".join(lines) + "\n")
    catalog = read_catalog(path, settings=settings(shop), preset="fast")
    assert catalog.items == good.items
    assert {line.name: line.reason.split(";")[0] for line in catalog.broken} == {
        "more": "line 3: 8 cells where the header has 7",
        "FINE (line 4)": "line 4: item 'FINE' is in line 2 already",
        "../one": "item must be 1 to 100 letters, digits, '.', '_' or '-' and begin with a letter "
        "or digit, got '../one'",
        "(line 6)": "line 6: no item",
        "few": "line 7: no motion",
    }


def test_a_missing_photo_may_be_put_beside_the_catalogue_later(shop):
    write_catalog(shop, GOOD + "late,late.png,walk.npz,,,,\n")
    assert run_job(shop, "--catalog", str(shop / "catalog.csv")) == 1
    shutil.copy(shop / "a.png", shop / "late.png")
    failed = shop / "out" / "failed.csv"
    (item,) = read_catalog(failed, settings=settings(shop), preset="fast").items
    assert item.photos == (shop / "late.png",)


def test_out_as_a_file_and_an_invalid_model_are_rejected(shop, capsys):
    write_catalog(shop, "item,photos,motion\none,a.png,walk.npz\n")
    (shop / "out").write_text("precious")
    assert run_job(shop) == 2
    assert "out must be a folder" in capsys.readouterr().err
    assert (shop / "out").read_text() == "precious"
    (shop / "out").unlink()
    assert run_job(shop, "--model", str(shop / "subjects")) == 2
    assert "model must be a folder with model_index.json" in capsys.readouterr().err
    assert run_job(shop, "--size", "100x100") == 2
    assert "height must be" in capsys.readouterr().err


def finish(output, *items):
    """Puts in place what the service would have left for items of equal inputs."""
    folder = output.video_folder(items[0])
    frames = np.full((items[0].num_frames, 64, 48, 3), 90, np.uint8)
    provenance.write(folder.result, frames, FPS, code=folder.mark())
    Image.new("RGB", (48, 64)).save(folder.poster)
    folder.update(status="completed", num_frames=len(frames), fps=FPS, size="48x64")
    output.publish(items, folder, {"render_s": 1.5})


class Stamp:
    """Signs as a certificate would: the file is another one afterwards."""

    def sign(self, path):
        path.write_bytes(path.read_bytes() + b"signed")


@pytest.fixture
def make_output(shop):
    def make():
        return Output(shop / "out", settings=settings(shop), align=True, estimator="blazepose")

    return make


@pytest.fixture
def output(make_output):
    return make_output()


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
    assert manifest["timings"] == {"render_s": 1.5}
    assert manifest["versions"]["torch"] == torch.__version__
    content = (shop / "out" / "one.mp4").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(content).hexdigest()
    found = provenance.verify(shop / "out" / "one.mp4")
    assert found.mark.code == found.tags["watermark"] == manifest["watermark"]
    with Image.open(shop / "out" / "one.jpg") as sheet:
        assert sheet.size == (5 * 48, 2 * 64)
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


def test_videos_of_another_size_are_other_videos(output, item, shop):
    finish(output, item)
    wide = Output(
        shop / "out", settings=settings(shop), align=True, estimator="blazepose", size=(64, 64)
    )
    assert not wide.is_finished(item)
    assert wide.video_folder(item).request().size == (64, 64)
    filmed = replace(item, motion=shop / "walk.mp4")
    assert wide.motion(filmed) != output.motion(filmed)


def test_an_interrupted_item_continues_and_a_failed_one_starts_again(output, item):
    folder = output.video_folder(item)
    folder.update(status="in_progress")
    folder.write_chunk(range(2), np.zeros((2, 64, 48, 3), np.uint8))
    assert output.video_folder(item).finished_frames() == {0, 1}
    folder.update(status="failed", error={"code": "x", "message": "y"})
    state = output.video_folder(item).video()
    assert (state.status, state.error) == ("queued", None)


def test_what_a_kill_left_of_finished_items_is_cleared_and_the_rest_kept(output, item):
    finish(output, item)
    other = replace(item, name="two", seed=4)
    left, under_way = output.video_folder(item), output.video_folder(other)
    assert output.unfinished([item, other]) == [[other]]
    assert not left.path.exists()
    assert under_way.path.exists()
    assert output.is_finished(item)


def test_what_has_equal_contents_is_rendered_once(output, item, shop):
    shutil.copy(shop / "a.png", shop / "copy-of-a.png")
    shutil.copy(shop / "walk.npz", shop / "copy-of-walk.npz")
    shutil.copytree(shop / "subjects" / "anna", shop / "subjects" / "anne")
    (shop / "subjects" / "anne" / "subject.json").write_text('{"name": "anne"}')
    same = replace(
        item, name="two", subject="anne",
        photos=(shop / "copy-of-a.png",), motion=shop / "copy-of-walk.npz",
    )  # fmt: skip
    other = replace(item, name="three", seed=4, subject="anne")
    assert output.unfinished([item, other, same]) == [[item, same], [other]]
    assert output.video_folder(item).request().subject == "anna"
    assert output.video_folder(other).request().subject == "anna", (
        "weights are loaded under one name"
    )
    finish(output, item, same)
    assert output.unfinished([item, other, same]) == [[other]]
    assert output.manifest(same)["subject"] == "anne"

    late = replace(same, name="four")
    assert output.unfinished([item, late]) == [], "a later line that equals a finished one"
    assert output.is_finished(late)
    assert (shop / "out" / "four.mp4").read_bytes() == (shop / "out" / "one.mp4").read_bytes()


def test_what_was_finished_before_there_was_a_certificate_is_signed_once(output, item, shop):
    finish(output, item)
    assert not output.manifest(item)["signed"]
    output.signer = Stamp()
    late = replace(item, name="late")
    for _ in range(2):
        assert output.unfinished([late, item]) == []
        for one in (item, late):
            content = (shop / "out" / f"{one.name}.mp4").read_bytes()
            assert content.count(b"signed") == 1
            manifest = output.manifest(one)
            assert manifest["signed"]
            assert manifest["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_work_folder_may_be_taken_away_when_all_is_finished(output, make_output, item, shop):
    """Poses of motions that are videos lie there; the page keeps what it shows of them."""
    filmed = replace(item, motion=shop / "walk.mp4")
    output.motion(filmed).parent.mkdir(parents=True)
    shutil.copy(shop / "walk.npz", output.motion(filmed))
    finish(output, filmed)
    output.write_page([filmed], {})
    page = (shop / "out" / "index.html").read_text()
    shutil.rmtree(shop / "out" / ".work")
    twin = replace(filmed, name="twin")
    output = make_output()
    assert output.unfinished([filmed, twin]) == []
    output.write_page([filmed], {})
    again = (shop / "out" / "index.html").read_text()
    motion = output.manifest(filmed)["media"]["motion"]
    assert (shop / "out" / motion).is_file()
    assert page.count(motion) == 1
    assert again.count(motion) == 2
    assert output.manifest(twin)["media"]["motion"] == motion


def test_weights_and_motions_are_changed_as_seldom_as_can_be(output, item, shop, still_motion):
    still_motion(12).save(shop / "run.npz")
    for number, name in enumerate(("berta", "clara")):
        (shop / "subjects" / name).mkdir()
        (shop / "subjects" / name / "subject.json").write_text(json.dumps({"photos": [number]}))
    items = [
        replace(item, name=f"item-{seed}", seed=seed, subject=subject, motion=shop / track)
        for seed, (subject, track) in enumerate(
            3 * list(itertools.product(("anna", "berta", "", "clara"), ("walk.npz", "run.npz")))
        )
    ]
    order = [group[0] for group in output.unfinished(items)]
    assert sorted(order, key=items.index) == items
    changes = [
        key for key, _ in itertools.groupby(order, key=lambda item: (item.subject, item.motion))
    ]
    assert len(changes) == 8
    assert len(list(itertools.groupby(changes, key=lambda change: change[0]))) == 4


def test_the_page_shows_the_folder_and_failed_csv_can_be_used(output, item, shop):
    broken = replace(item, name="two", subject="")
    finish(output, item)
    items, failures = [item, broken], {"two": "nobody is in the photo"}
    output.write_page(items, failures)
    output.write_failed(items, [], failures)
    html = (shop / "out" / "index.html").read_text()
    for path in (shop / "out").glob("media/*"):
        assert path.relative_to(shop / "out").as_posix() in html
    assert len(list((shop / "out").glob("media/*"))) == 3
    with (shop / "out" / "failed.csv").open(newline="") as file:
        assert [(row["item"], row["reason"]) for row in csv.DictReader(file)] == [
            ("two", "nobody is in the photo")
        ]
    failed = shop / "out" / "failed.csv"
    (again,) = read_catalog(failed, settings=settings(shop), preset="exact").items
    assert (again.name, again.seed, again.preset) == ("two", 3, "fast")
    finish(output, again)
    output.write_page([again], {})
    html = (shop / "out" / "index.html").read_text()
    assert "2 rendered" in html
    assert html.index("two.mp4") < html.index("one.mp4"), "what was asked for now comes first"
    output.write_failed([again], [], {})
    assert not failed.exists()
