"""The script for one large GPU, at toy size on a CPU."""

import json

import pytest

from benchmarks import gpu
from dreampose import checkpoints


@pytest.mark.slow
def test_it_renders_trains_and_writes_a_model_of_small_files(tmp_path):
    arguments = (
        "--device cpu --workers 1 --people 1 --render-minutes 1 --train-minutes 0.01 "
        "--batch-size 2 --no-timing"
    )
    gpu.main(["--out", str(tmp_path), *arguments.split()])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["people"] == 1
    assert report["training"]["steps"] >= 1
    assert all(value > 0 for value in report["training"]["losses"].values())
    files = [file for file in (tmp_path / "model").rglob("*") if file.is_file()]
    assert max(file.stat().st_size for file in files) < 16 * 2**20
    pipe = checkpoints.load(tmp_path / "model")
    assert pipe.recipe.needs_surface
    assert pipe.refiner is not None
