"""`--dry-run`: the estimate that every job prints."""

import re

import numpy as np
import pytest
from PIL import Image

from dreampose import config, recipes
from dreampose.config import Savings
from dreampose.io import video
from dreampose.poses import Motion
from jobs import catwalk, download, evaluate, finetune, preprocess, render, screen, train
from jobs.common import downloads, planning

PAPER_HOURS = 48
"""Two days on two A100s."""


@pytest.fixture
def tiny_costs(tiny_recipe, monkeypatch):
    """A table with costs of the tiny recipe: powers of ten, to be told apart."""
    names = [
        f"{stage} {precision}{more}"
        for stage in ("vae", "encoder", "base", "subject full", "subject lora", "decoder")
        for precision in ("fp32", "bf16")
        for more in ("", " checkpointed")
    ]
    cost = {"flops": 10, "held_bytes": 100, "peak_bytes": 1000, "scratch_bytes": 1,
            "num_trained": 5, "state_bytes": 7}  # fmt: skip
    table = {name: dict(cost) for name in [*names, "encode", "subject encoding", "call", "decode"]}
    table["subject lora bf16 checkpointed"]["num_trained"] = 2
    found = {
        "size": [tiny_recipe.height, tiny_recipe.width],
        "parameters": {"unet": 5_000_000},
        "costs": table,
    }
    monkeypatch.setattr(planning, "_read_costs", lambda: {planning.model_key(tiny_recipe): found})
    return table


def test_paper_training_takes_the_paper_two_days_within_a_factor_of_two():
    """The published code encodes target and photo in float32 in each of the 19,070 steps."""
    costs = planning.costs_of(recipes.sd14())
    flops = costs.cost("base", precision="fp32").flops + 2 * costs.cost("encode").flops
    (machine,) = [m for m in planning.read_machines() if m.name.startswith("2 x A100 (a2-highgpu")]
    plan = planning.Plan(title="paper", work=(), flops=19_070 * 32 * flops)
    hours = plan.hours(machine) or 0
    assert PAPER_HOURS / 2 <= hours <= PAPER_HOURS * 2


def test_paper_recipe_is_planned_for_the_paper_data_set(capsys, tmp_path):
    code = train.main(
        ["--stage", "base", "--recipe", "sd14", "--data", str(tmp_path / "none"),
         "--out", str(tmp_path / "run"), "--workers", "2", "--precision", "fp32", "--dry-run"]
    )  # fmt: skip
    text = capsys.readouterr().out
    assert code == 0
    assert not (tmp_path / "run").exists()
    (row,) = [line for line in text.splitlines() if "a2-ultragpu-2g" in line]
    hours = float(row.split()[-2])
    assert 0 < hours < PAPER_HOURS
    # 339 videos of 360 frames, 5 epochs, 16 a step and worker.
    assert "122,040 frames" in text
    assert "19,070 steps of 32 samples" in text
    # Weights, gradients, a copy to exchange them and two moments, in float32, and activations.
    (memory,) = re.findall(r"([\d.]+) GB a worker", text)
    assert 5 * 4 * 0.86 < float(memory) < 60


def test_a_recipe_without_measured_costs_is_planned_without_gpu_figures(
    capsys, tiny_json, tiny_recipe
):
    arguments = ["--stage", "vae", "--data", "nowhere", "--out", "x", "--dry-run"]
    assert train.main([*arguments, "--recipe", str(tiny_json)]) == 0
    text = capsys.readouterr().out
    assert f"costs of recipe {tiny_recipe.name!r} are not measured" in text
    assert "GPU memory" not in text
    assert "steps of" in text


def test_costs_follow_frame_size_optimizer_and_number_of_workers(tiny_costs, tiny_recipe):
    costs = planning.costs_of(tiny_recipe)
    plain = costs.cost("base", precision="fp32")
    eight_bit = costs.cost("base", precision="fp32", savings=Savings(optimizer="adamw8bit"))
    assert plain.peak_bytes - eight_bit.peak_bytes == pytest.approx(6 * 5, rel=0.01)
    double = config.replace(tiny_recipe, height=2 * tiny_recipe.height)
    larger = planning.costs_of(double).cost("base", precision="fp32")
    assert larger.flops == 20
    assert larger.peak_bytes == 100 + 2 * 900
    chunk = costs.rendering(num_frames=12, num_calls=3, branches=2, chunk=4)
    assert chunk.flops == 12 * (3 * 2 * 10 + 10)
    assert chunk.peak_bytes == 4 * 5_000_000 + 2 * 4 * 900


def test_training_without_data_is_planned_for_the_paper_data_set(capsys, tiny_json):
    arguments = ["--stage", "encoder", "--data", "nowhere", "--out", "x", "--dry-run"]
    assert train.main([*arguments, "--recipe", str(tiny_json)]) == 0
    text = capsys.readouterr().out
    assert "339 clips of UBC Fashion" in text
    assert "2 steps of 2 samples" in text


def test_subjects_are_planned_by_method(capsys, tmp_path, tiny_model, tiny_costs):
    people = tmp_path / "people.csv"
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    people.write_text("subject,photos\nanna,a.png\nbert,a.png\n")
    arguments = ["--model", str(tiny_model), "--subjects", str(people), "--out", "x", "--dry-run"]
    assert finetune.main(arguments) == 0
    full = capsys.readouterr().out
    assert finetune.main([*arguments, "--method", "lora", "--gradient-checkpointing"]) == 0
    low_rank = capsys.readouterr().out
    assert "2 subjects, method full" in full
    assert "2 steps of the decoder" in full
    assert "0 steps of the decoder" in low_rank
    assert "checkpointed" not in full + low_rank
    operations = [re.search(r"([\d.e-]+) PFLOP in bf16", text)[1] for text in (full, low_rank)]
    assert float(operations[1]) < float(operations[0])


def test_preprocessing_and_synthetic_clips_are_planned_without_ray(capsys, tmp_path, tiny_model):
    clip = tmp_path / "clips" / "a.mp4"
    clip.parent.mkdir()
    video.write(clip, np.zeros((12, 64, 48, 3), np.uint8), 30.0)
    code = preprocess.main(
        ["--videos", str(clip.parent), "--model", str(tiny_model), "--out", "x", "--dry-run"]
    )
    assert code == 0
    assert "12 frames" in capsys.readouterr().out
    assert catwalk.main(["--out", "x", "--identities", "2", "--frames", "8", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "core hours" in text
    assert "GPU memory" not in text
    code = evaluate.main(
        ["--pred", str(clip.parent), "--truth", str(clip.parent), "--out", "x", "--metrics", "l1",
         "--dry-run"]
    )  # fmt: skip
    assert code == 0
    assert "1 pairs of clips, 1 scores" in capsys.readouterr().out


def test_rendering_is_planned_from_the_catalogue(capsys, tmp_path, tiny_model, tiny_costs):
    Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / "a.png")
    Motion(
        maps=np.zeros((10, 2, 64, 48), np.float32),
        joints=np.zeros((10, 3, 4), np.float32),
        confidence=np.ones(10, np.float32),
        fps=10.0,
    ).save(tmp_path / "walk.npz")
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("item,photos,motion\none,a.png,walk.npz\ntwo,a.png,walk.npz\n")
    code = render.main(
        ["--model", str(tiny_model), "--catalog", str(catalog), "--out", str(tmp_path / "out"),
         "--preset", "exact", "--dry-run"]
    )  # fmt: skip
    assert code == 0
    text = capsys.readouterr().out
    assert "20 frames with exact, 101 calls" in text
    assert not (tmp_path / "out").exists()


def test_screening_is_planned_by_frames_and_rejects_the_same_input_as_the_job(capsys, tmp_path):
    for name, number in (("a", 30), ("b", 8)):
        video.write(tmp_path / f"{name}.mp4", np.zeros((number, 64, 48, 3), np.uint8), 30.0)
    arguments = ["--videos", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]
    assert screen.main(arguments) == 0
    text = capsys.readouterr().out
    assert "38 frames for cuts, 20 of them for persons" in text
    assert "core hours" in text
    assert not (tmp_path / "out").exists()
    assert screen.main([*arguments, "--coverage", "2"]) == 2
    assert "coverage must be in [0, 1], got 2" in capsys.readouterr().err


def test_downloads_are_planned_without_asking_a_server(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.Fetcher, "fetch", lambda *_: pytest.fail("a server was asked"))
    (tmp_path / "here.mp4").write_bytes(b"x")
    links = [f"https://example.org/{number}.mp4" for number in range(1200)]
    (tmp_path / "train.txt").write_text("\n".join([*links, "here.mp4"]))
    fetched = tmp_path / "out" / "files" / "train" / "0.mp4"
    fetched.parent.mkdir(parents=True)
    fetched.write_bytes(b"x")
    arguments = ["--out", str(tmp_path / "out"), "--dry-run"]
    known = ["--list", str(tmp_path / "train.txt"), "--parallel", "4", "--pause", "1"]
    assert download.main([*known, *arguments]) == 0
    text = capsys.readouterr().out
    assert "1,201 files listed, 1,199 of them to be fetched" in text
    # 1,199 files, 5 s and a pause of 1 s each, four at once.
    assert "0.50 h for servers" in text
    assert "unknown number of bytes" in text
    assert not list(tmp_path.rglob("*.csv"))
    assert download.main(["--ubc-fashion", *arguments]) == 0
    assert "339 files of 'train'" in capsys.readouterr().out
    assert download.main(["--list", "https://example.org/a.txt", *arguments]) == 0
    assert (
        "a.txt, whose list is not fetched yet: their number is unknown" in capsys.readouterr().out
    )
    assert download.main(arguments) == 2
    assert "list must be given, or --ubc-fashion" in capsys.readouterr().err


def test_a_wrong_optimizer_or_precision_is_rejected_before_anything(capsys):
    arguments = ["--stage", "base", "--data", "d", "--out", "x", "--dry-run"]
    assert train.main([*arguments, "--optimizer", "sgd"]) == 2
    assert "optimizer must be one of adamw, adamw8bit, got 'sgd'" in capsys.readouterr().err
    assert train.main([*arguments, "--precision", "fp8"]) == 2
    assert "precision must be one of auto, fp32, bf16, got 'fp8'" in capsys.readouterr().err
