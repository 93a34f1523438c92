"""Screening job: measurements and output lists."""

import csv
import json

import numpy as np
import pytest

from dreampose.data.screening import VideoStatistics
from dreampose.io import video
from jobs import screen
from jobs.common import storage, video_list

FACTS = {
    "height": 640, "width": 512, "num_frames": 300, "fps": 30.0, "coverage": 1.0, "whole": 1.0,
    "most_people": 1, "cuts": [], "hashes": ["0f" * 32] * 4,
}  # fmt: skip


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def measured(tmp_path):
    """Four videos that were looked at before, and a manifest of them."""
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    facts = {
        "a.mp4": FACTS,
        "b.mp4": FACTS | {"most_people": 3, "cuts": [9], "hashes": ["a5" * 32] * 4},
        "c.mp4": FACTS | {"num_frames": 200},
        "d.mp4": {"error": "video: cannot decode 'd.mp4'"},
    }
    lines = ["path,subject"]
    for name, values in facts.items():
        (folder / name).touch()
        lines.append(f"{name},person {name[0]}")
        storage.write_text(screen._file(str(out), name), json.dumps(values))
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder, out


def test_kept_videos_are_a_manifest_and_the_others_a_report(measured, capsys, monkeypatch):
    folder, out = measured
    monkeypatch.setattr(
        screen.driver, "ray_session", lambda *_, **__: pytest.fail("Ray was started")
    )
    words = ["--videos", str(folder / "manifest.csv"), "--out", str(out)]
    assert screen.main(words) == 0
    assert "1 of 4 videos kept" in capsys.readouterr().out
    (kept,) = video_list.find(str(out / "kept.csv"))
    assert (kept.path, kept.subject) == (str(folder / "a.mp4"), "person a")
    why = {row["subject"]: row["reasons"] for row in rows(out / "dropped.csv")}
    assert why["person b"] == "people: 3 in one frame, not 1; cuts: 1, at frame 9"
    assert why["person c"] == "duplicate of a.mp4"
    assert why["person d"].startswith("unreadable: video: cannot decode")
    report = (out / "report.md").read_text()
    for line in ("| duplicate | 1 |", "| cuts | 1 |", "| people | 1 |", "| unreadable | 1 |"):
        assert line in report
    assert "| c.mp4 | duplicate of a.mp4 |" in report

    # Other limits need no other measurement.
    assert screen.main([*words, "--most-people", "3", "--most-cuts", "1", "--nearest", "0"]) == 0
    assert [row["subject"] for row in rows(out / "kept.csv")] == [
        "person a",
        "person b",
        "person c",
    ]


def test_a_worker_measures_videos_and_records_errors_of_others(tmp_path):
    video.write(tmp_path / "blank.mp4", np.full((12, 64, 48, 3), 230, np.uint8), 12)
    (tmp_path / "broken.mp4").write_text("not a video")
    out = str(tmp_path / "out")
    names = ["blank.mp4", "broken.mp4"]
    worker = screen.Worker(out, num_threads=1)
    worker({"clip_id": names, "path": [str(tmp_path / name) for name in names]})
    blank, broken = (json.loads(storage.read_text(screen._file(out, name))) for name in names)
    got = VideoStatistics.from_dict(blank)
    assert (got.height, got.width, got.num_frames, got.coverage) == (64, 48, 12, 0)
    assert "video: cannot decode" in broken["error"]


@pytest.mark.ray
def test_the_job_measures_on_ray_and_continues(ray_cluster, tmp_path, capsys):
    folder, out = tmp_path / "videos", tmp_path / "out"
    for index, level in enumerate((30, 220)):
        video.write(folder / f"{index}.mp4", np.full((12, 64, 48, 3), level, np.uint8), 12)
    words = ["--videos", str(folder), "--out", str(out), "--smallest", "32"]
    assert screen.main(words) == 0
    assert "0 of 2 videos kept" in capsys.readouterr().out
    times = {path.name: path.stat().st_mtime_ns for path in (out / "measures").iterdir()}
    assert len(times) == 2
    video.write(folder / "2.mp4", np.full((12, 64, 48, 3), 90, np.uint8), 12)
    assert screen.main([*words, "--coverage", "0", "--whole", "0", "--nearest", "0"]) == 0
    assert "3 of 3 videos kept" in capsys.readouterr().out
    after = {path.name: path.stat().st_mtime_ns for path in (out / "measures").iterdir()}
    assert len(after) == 3 and times.items() <= after.items()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--coverage", "90"], "coverage must be in [0, 1], got 90"),
        (["--videos", "photos.csv"], "got a set of photos"),
        (["--videos", "nowhere"], "videos must be a folder"),
    ],
)
def test_bad_input_is_one_line(words, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.csv").write_text("path\na.jpg;b.jpg\n")
    video.write(tmp_path / "v" / "a.mp4", np.zeros((2, 16, 16, 3), np.uint8), 10)
    assert screen.main(["--videos", "v", "--out", "out", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not (tmp_path / "out").exists()
