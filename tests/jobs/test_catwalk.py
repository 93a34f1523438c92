"""The data set rendered through Ray Data is the one rendered without."""

import csv

import pytest

from dreampose.synthetic.generate import generate, tasks
from jobs import catwalk

FLAGS = [
    "--identities",
    "1",
    "--frames",
    "2",
    "--split",
    "val",
    "--seed",
    "4",
    "--size",
    "64x48",
    "--workers",
    "1",
]
WANTED = {"identities": 1, "frames": 2, "split": "val", "seed": 4, "height": 64, "width": 48}


@pytest.mark.ray
def test_renders_the_same_clips_and_only_the_missing_ones(ray_cluster, tmp_path):
    out, plain = tmp_path / "ray", tmp_path / "plain"
    assert catwalk.main(["--out", str(out), *FLAGS]) == 0
    list(generate(plain, tasks(**WANTED)))
    names = sorted(path.name for path in plain.iterdir())
    # The job also marks its folder as one that a submission leaves out.
    assert sorted(path.name for path in out.iterdir() if path.name != ".rayignore") == names
    for name in names:
        if not name.endswith(".npz"):  # zip files hold the time of writing
            assert (out / name).read_bytes() == (plain / name).read_bytes()
    with (out / "manifest.csv").open() as file:
        kept, lost = (out / row["path"] for row in csv.DictReader(file))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert catwalk.main(["--out", str(out), *FLAGS]) == 0
    assert lost.read_bytes() == (plain / lost.name).read_bytes()
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--size", "64"], "size"), (["--workers", "0"], "workers"), (["--frames", "0"], "frames")],
)
def test_bad_flags_give_one_line_before_ray_starts(tmp_path, capsys, flags, named):
    out = tmp_path / "out"
    assert catwalk.main(["--out", str(out), "--identities", "1", *flags]) == 2
    assert f"{named} must" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not out.exists()
