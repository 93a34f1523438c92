"""Ablation job: validation, resuming and report."""

import csv
import json
from dataclasses import asdict

import numpy as np
import pytest

from dreampose import checkpoints, poses
from dreampose import data as dataset
from dreampose.io import video
from dreampose.metrics import Interval
from jobs import ablate
from jobs.common import planning
from jobs.evaluation import ablation, ablation_report
from jobs.evaluation.ablation import METRICS, ROWS, AblationOptions, HeldOutSubject

MOTIONS = ("walk", "turn")
SMALL = ("--base-steps", 2, "--steps", 2, "--vae-steps", 1, "--estimator", "catwalk")


def write_manifest(folder, people, *, split="test", motions=MOTIONS):
    lines = [f"{one}-{motion}.mp4,{one},{split},{motion}" for one in people for motion in motions]
    (folder / "manifest.csv").write_text("\n".join(["path,subject,split,motion", *lines]) + "\n")


@pytest.fixture
def truth(draw_clip, tmp_path):
    """Clips of two people."""
    folder = tmp_path / "truth"
    folder.mkdir()
    for seed, (one, motion) in enumerate((o, m) for o in ("anna", "bert") for m in MOTIONS):
        draw_clip(folder / f"{one}-{motion}.mp4", seed=seed, num_frames=48)
    write_manifest(folder, ["anna", "bert"])
    return folder


@pytest.fixture
def data(draw_clip, tiny_model, tiny_recipe, tmp_path):
    """A clip encoded by the tiny model."""
    draw_clip(tmp_path / "training.mp4", seed=5)
    clip = video.read(tmp_path / "training.mp4")
    motion = poses.extract(clip, poses.estimator("catwalk"), height=64, width=48)
    row = dataset.encode_clip(
        clip, motion, recipe=tiny_recipe, pipe=checkpoints.load(tiny_model), seed=0, clip_id="a",
        subject="a",
    )  # fmt: skip
    dataset.write_rows(tmp_path / "data" / "a.parquet", [row])
    return tmp_path / "data"


@pytest.fixture
def flags(data, truth, tiny_model, tmp_path):
    return ["--data", data, "--vae-model", tiny_model, "--truth", truth, "--out",
            tmp_path / "out", *SMALL, "--seeds", 0]  # fmt: skip


def command(*flags):
    return ablate.main([str(flag) for flag in flags])


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_run_does_only_the_rest_and_ends_in_a_table(driver, capsys, flags, tmp_path):
    out = tmp_path / "out"

    def scored():
        return list(out.glob("scores/*/*.json"))

    driver.kill_when(scored, "ablate", *flags)
    before = {path: path.stat().st_mtime_ns for path in [*scored(), *out.glob("bases/*/model")]}
    assert not (out / "report.md").exists(), "the kill came too late to show anything"
    code = driver.again("ablate", *flags)
    text, err = capsys.readouterr()
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(scored()) == 2 * 5
    assert sorted(path.parent.name for path in out.glob("bases/*/model")) == [
        f"{variant}-{seed}" for variant in ("clip_only", "full", "one_pose") for seed in (0,)
    ]
    assert not list((out / "subjects").rglob("*.safetensors"))
    assert (out / "report.md").read_text().strip() in text
    assert "2 test people with 1 seed(s)" in text
    with (out / "people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(ROWS) * 2 * len(METRICS)
    assert all(np.isfinite(float(row["value"])) for row in rows)


class TestWithoutRay:
    @pytest.fixture(autouse=True)
    def _no_ray(self, monkeypatch):
        def start(*_, **__):
            pytest.fail("Ray was started")

        monkeypatch.setattr(ablate.driver, "ray_session", start)

    def refusal(self, capsys, *flags):
        assert command(*flags) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    def test_a_dry_run_counts_everything_and_does_nothing(
        self, capsys, flags, tiny_recipe, tmp_path, monkeypatch
    ):
        plans = []
        show = ablate.driver._show
        monkeypatch.setattr(
            ablate.driver, "_show", lambda plan, prices: (plans.append(plan), show(plan, prices))
        )
        pieces = {"base fp32": 1, "subject full fp32": 10**3, "decoder fp32": 10**6,
                  "call": 10**9, "decode": 0, "subject encoding": 0}  # fmt: skip
        costs = {
            name: {"flops": number, "held_bytes": 0, "peak_bytes": number, "scratch_bytes": 0}
            for name, number in pieces.items()
        }
        size = [tiny_recipe.height, tiny_recipe.width]
        found = {"size": size, "parameters": {"unet": 5}, "costs": costs}
        table = {planning.model_key(tiny_recipe): found}
        monkeypatch.setattr(planning, "_read_costs", lambda: table)
        monkeypatch.setattr(planning, "sampling_of", lambda *_: (1, 2))
        assert command(*flags, "--seeds", 0, 1, "--dry-run") == 0
        text = capsys.readouterr().out
        assert "2 subjects, 2 seeds" in text
        # Three variants of two seeds; five kinds of finetuning from them for each of two people.
        assert "6 trainings of 2 steps" in text
        assert "20 finetunings of 2 steps, then 1 of the decoder" in text
        # Eight rows for two people, two motions, two seeds: six pairs of frames of each.
        assert "64 clips rendered, 12 frames of each" in text
        stage = tiny_recipe.base_stage
        samples = 2 * stage.gradient_accumulation * stage.batch_size
        finetuning = 20 * 2 * 10**3 + 20 * 10**6
        assert plans[0].flops == 6 * samples + finetuning + 64 * 12 * 2 * 10**9
        assert plans[0].cost.peak_bytes == 4 * 5 + 2 * 8 * 10**9
        assert not (tmp_path / "out").exists()
        assert command(*flags, "--seeds", -1, "--dry-run") == 2

    def test_what_is_done_needs_no_ray_but_another_plan_is_rejected(
        self, capsys, flags, truth, tmp_path, rng
    ):
        people = ablate.find_subjects(str(truth), None)
        out = tmp_path / "out"
        for cell in ablation.cells([0], people):
            scores = {row.name: dict.fromkeys(METRICS, float(rng.random())) for row in cell.rows}
            cell.result(out).parent.mkdir(parents=True, exist_ok=True)
            cell.result(out).write_text(json.dumps({"scores": scores}))
        assert command(*flags) == 0
        assert "0 trainings and 0 of 10 finetunings are to be done" in capsys.readouterr().out
        assert (out / "report.md").is_file()
        line = self.refusal(capsys, *flags, "--base-steps", 3)
        assert "hold results of base_steps 3, got 2" in line

    def test_clips_that_are_none_of_test_people(self, capsys, flags, truth, draw_clip):
        write_manifest(truth, ["anna"], split="train")
        assert "subjects that no training has seen, got 'anna'" in self.refusal(capsys, *flags)
        write_manifest(truth, ["anna"], motions=["walk"])
        assert "must hold a turn of 'anna', got none" in self.refusal(capsys, *flags)
        write_manifest(truth, ["anna"])
        line = self.refusal(capsys, *flags, "--people", 2)
        assert "truth must hold at least 2 subjects, got 1" in line
        draw_clip(truth / "anna-turn.mp4", seed=0, num_frames=40)
        line = self.refusal(capsys, *flags)
        assert "at least 48 frames, got 40 in 'anna-turn.mp4'" in line
        (truth / "manifest.csv").unlink()
        assert "with a manifest.csv" in self.refusal(capsys, *flags)

    def test_data_of_another_model(self, capsys, flags, tiny_model, tmp_path):
        other = checkpoints.load(tiny_model)
        other.vae.register_to_config(scaling_factor=2.0)
        checkpoints.save(other, tmp_path / "other")
        line = self.refusal(capsys, *flags, "--vae-model", tmp_path / "other")
        assert "data must be encoded by the model" in line
        assert not (tmp_path / "out").exists()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


PLAN = AblationOptions(
    model="models/start", fingerprint="f1", data="d", truth="t", estimator="blazepose",
    preset="fast", base_steps=700, num_steps=60, num_vae_steps=50,
)  # fmt: skip


@pytest.fixture
def grids(rng):
    """Eight people, three seeds: full is 0.02 in L1; what is worse or better, clearly so."""
    person, seed = rng.normal(0, 0.004, (8, 1)), rng.normal(0, 0.001, (1, 3))

    def grid(value):
        return value + person + seed + rng.normal(0, 1e-4, (8, 3))

    away = {"clip_only": 0.004, "no_decoder": -0.003, "one_pose": 0.0, "one_photo": 0.005,
            "five_photos": 0.002}  # fmt: skip
    found = {}
    for row in ROWS:
        l1, tde = 0.02 + away.get(row, 0.0), 0.03 if row == "own_noise" else 0.012
        found[row] = {"l1": grid(l1), "ssim": grid(1 - 5 * l1), "lpips-lite": grid(0.1),
                      "psnr": grid(25.0), "tde": np.full((8, 3), tde)}  # fmt: skip
    return found


def sentences(grids):
    text = ablation_report.markdown(PLAN, grids)
    lines = [line for line in text.splitlines() if " against full: " in line]
    return text, {line[2:].split(" against")[0]: line for line in lines}


def test_the_report_states_where_the_papers_ordering_holds(grids):
    text, found = sentences(grids)
    assert list(found) == ["CLIP only", "no VAE-decoder finetune", "one pose", "smoothed poses",
                           "full, 1 photo", "full, 5 photos"]  # fmt: skip
    assert "ordering holds in L1 (+0.0040 [+0.00" in found["CLIP only"]
    assert "holds in SSIM (-0.02" in found["CLIP only"]
    assert "is within noise in lpips-lite" in found["CLIP only"]
    assert "does not hold in L1 (-0.0030 [-0.0" in found["no VAE-decoder finetune"]
    # One pose is as good as five in the paper's L1, worse in its SSIM.
    assert "holds in L1" in found["one pose"]
    assert "in the paper alike" in found["one pose"]
    assert "is within noise in SSIM" in found["one pose"]
    assert "holds in L1 (+0.0050" in found["full, 1 photo"]
    assert "does not hold in L1 (+0.0020" in found["full, 5 photos"]
    flicker = "of full is 0.400 [0.400, 0.400] of that of one pose, each frame its own noise"
    assert f"{flicker}, wanted at most 0.5: met" in text
    grids["full"]["tde"] = np.full((8, 3), 0.018)
    assert "0.600 [0.600, 0.600]" in sentences(grids)[0]
    assert "wanted at most 0.5: NOT met" in sentences(grids)[0]


@pytest.mark.parametrize(
    ("claim", "low", "high", "higher", "expected"),
    [
        ("worse", 0.1, 0.3, False, "holds"),
        ("worse", 0.1, 0.3, True, "does not hold"),
        ("worse", -0.3, -0.1, False, "does not hold"),
        ("worse", -0.3, -0.1, True, "holds"),
        ("worse", -0.1, 0.3, False, "is within noise"),
        ("better", -0.3, -0.1, False, "holds"),
        ("alike", -0.1, 0.3, False, "holds"),
        ("alike", 0.1, 0.3, True, "does not hold"),
        ("alike", float("nan"), float("nan"), True, "is within noise"),
        ("worse", float("nan"), float("nan"), True, "is within noise"),
    ],
)
def test_a_verdict_needs_an_interval_off_zero(claim, low, high, higher, expected):
    interval = Interval(value=(low + high) / 2, low=low, high=high)
    assert ablation_report.verdict(claim, interval, higher_is_better=higher) == expected


def test_the_paper_claims_what_its_table_says():
    found = {name: ablation_report.claims(row) for name, row in ROWS.items()}
    assert found["clip_only"] == {"l1": "worse", "ssim": "worse", "lpips-lite": "worse"}
    assert found["one_pose"] == {"l1": "alike", "ssim": "worse", "lpips-lite": "alike"}
    assert found["full"] == found["own_noise"] == {}


def test_the_table_has_our_figures_and_the_papers_beside_them(grids):
    lines = ablation_report.table(grids).splitlines()
    head, rows = lines[0], {line.split("|")[1].strip(): line for line in lines[2:]}
    assert head.startswith("| variant | L1 ↓ | SSIM ↑ | lpips-lite ↓ | PSNR ↑ |")
    assert head.endswith("| L1 \\* | SSIM \\* | VGG \\* | LPIPS \\* |")
    assert list(rows) == [row.title + (" (3 photos)" if name == "full" else "")
                          for name, row in ROWS.items()]  # fmt: skip
    assert f"| CLIP only | {grids['clip_only']['l1'].mean():.4f} [" in rows["CLIP only"]
    assert rows["CLIP only"].endswith("| .025 | .882 | .247 | .070 |")
    assert rows["full, 5 photos"].endswith("| – | – | – | – |")
    text = ablation_report.markdown(PLAN, grids)
    assert "another data set" in text
    assert "700 steps of every base training, 60 of UNet and adapter and 50 of" in text
    assert "Gaussian of 2 frames' deviation, cut off at 6 frames" in text


def test_one_person_has_figures_and_no_intervals(grids):
    one = {row: {name: grid[:1] for name, grid in found.items()} for row, found in grids.items()}
    text = ablation_report.markdown(PLAN, one)
    assert "nan" not in text
    assert "holds in" not in text


def test_files_contain_the_scores(tmp_path, rng):
    people = [HeldOutSubject(name=name, files={}) for name in ("anna", "bert")]
    known = {}
    for cell in ablation.cells([3, 7], people):
        scores = {}
        for row in cell.rows:
            scores[row.name] = {name: float(rng.random()) for name in METRICS}
            for name, value in scores[row.name].items():
                known[row.name, cell.subject.name, str(cell.base.seed), name] = value
        cell.result(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        cell.result(tmp_path).write_text(json.dumps({"scores": scores, "plan": asdict(PLAN)}))
    text = ablation_report.write(PLAN, people, [3, 7], tmp_path)
    assert (tmp_path / "report.md").read_text() == f"{text}\n"
    with (tmp_path / "people.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("row", "identity", "seed", "metric")
    assert {tuple(row[key] for key in keys): float(row["value"]) for row in rows} == known
    with (tmp_path / "report.csv").open(newline="") as file:
        means = {(row["row"], row["metric"]): row for row in csv.DictReader(file)}
    four = [known["one_pose", who, seed, "l1"] for who in ("anna", "bert") for seed in "37"]
    full = [known["full", who, seed, "l1"] for who in ("anna", "bert") for seed in "37"]
    row = means["one_pose", "l1"]
    assert float(row["value"]) == pytest.approx(np.mean(four))
    assert float(row["difference"]) == pytest.approx(np.mean(four) - np.mean(full))
    assert (row["people"], row["seeds"]) == ("2", "2")
