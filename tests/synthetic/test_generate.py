"""Generation of data sets: files, manifest, resuming."""

import csv
import json

import numpy as np
import pytest

from dreampose.__main__ import main
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.synthetic.generate import generate, tasks

WANTED = {"identities": 1, "frames": 3, "split": "val", "seed": 4, "height": 64, "width": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("catwalk")
    assert list(generate(out, tasks(**WANTED)))[-1] == (2, 2)
    return out


def test_every_clip_has_a_video_ground_truth_and_parameters(folder):
    with (folder / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["motion"] for row in rows] == ["walk", "turn"]
    assert len({row["subject"] for row in rows}) == 1
    for row in rows:
        path = folder / row["path"]
        clip = video.read(path)
        assert clip.frames.shape == (3, 64, 48, 3)
        assert clip.fps == float(row["fps"])
        truth = np.load(path.with_suffix(".npz"), allow_pickle=False)
        assert truth["parts"].shape == (3, 64, 48)
        assert truth["uv"].shape == (3, 64, 48, 2)
        assert truth["joints"].shape == (3, 33, 3)
        facts = json.loads(path.with_suffix(".json").read_text())
        assert (facts["split"], facts["motion"]) == ("val", row["motion"])
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_motions_are_chosen_by_name(tmp_path):
    assert list(generate(tmp_path, tasks(**WANTED, motions=["across"])))[-1] == (1, 1)
    with (tmp_path / "manifest.csv").open() as file:
        assert [row["motion"] for row in csv.DictReader(file)] == ["across"]
    with pytest.raises(InputError, match=r"^motions must be among walk, turn, across, got run"):
        tasks(**WANTED, motions=["walk", "run"])


def test_a_second_run_renders_only_missing_clips(folder):
    walk, turn = sorted(folder.glob("*.mp4"), key=lambda path: "turn" in path.name)
    before, bits = walk.stat().st_mtime_ns, turn.read_bytes()
    turn.unlink()
    assert list(generate(folder, tasks(**WANTED))) == [(1, 2), (2, 2)]
    assert walk.stat().st_mtime_ns == before
    assert turn.read_bytes() == bits


def test_a_folder_with_clips_of_another_length_is_an_error(folder):
    with pytest.raises(InputError, match=r"^out must .* num_frames 5, got num_frames 3"):
        list(generate(folder, tasks(**(WANTED | {"frames": 5}))))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--identities", "0"], "identities must"),
        (["--identities", "1", "--frames", "0"], "frames must"),
        (["--identities", "1", "--size", "64"], "size must"),
        (["--identities", "1", "--size", "65x48"], "size must"),
        (["--identities", "1", "--seed", "-1"], "seed must"),
        (["--identities", "1", "--workers", "0"], "workers must"),
    ],
)
def test_invalid_arguments_print_one_line_and_return_2(tmp_path, capsys, flags, named):
    assert main(["catwalk", "--out", str(tmp_path / "out"), *flags]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert named in complaint
    assert not (tmp_path / "out").exists()
