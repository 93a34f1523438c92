"""Evaluation job: validation, scores and reuse of results."""

import base64
import contextlib
import csv
import json
import re
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from dreampose import metrics
from dreampose.io import video
from jobs import evaluate
from jobs.evaluation import clips, report, scoring


def draw(seed, num_frames=18, height=36, width=32):
    """A square that moves before a grey wall."""
    random = np.random.default_rng(seed)
    frames = np.full((num_frames, height, width, 3), 210, np.uint8)
    colour = random.integers(0, 200, 3)
    for index in range(num_frames):
        frames[index, 8:28, index // 2 : index // 2 + 12] = colour
    return frames


@pytest.fixture
def folders(tmp_path, save_pngs):
    """Two people with two clips each: the truth, a noisy method as PNGs, a copying one as MP4s."""
    random = np.random.default_rng(0)
    truths = {}
    for index, name in enumerate(["anna-walk", "anna-turn", "bea-walk", "bea-turn"]):
        video.write(tmp_path / "truth" / f"{name}.mp4", draw(index), 30)
        truths[name] = video.read(tmp_path / "truth" / f"{name}.mp4").frames
        strength = 4 * (index + 1)
        noise = random.integers(-strength, strength + 1, truths[name].shape)
        save_pngs(tmp_path / "noisy" / name, (truths[name] + noise).clip(0, 255).astype(np.uint8))
        video.write(tmp_path / "copy" / f"{name}.mp4", np.repeat(truths[name][:1], 18, axis=0), 30)
    return tmp_path


@pytest.fixture
def in_process(monkeypatch):
    """Scores rows in this process, as a worker would; gives the batches that were scored."""
    scored = []

    def run(_args, rows, folder, weights, _capacity):
        scorer = scoring.Scorer(str(folder), weights, 1, "cpu")
        failed = {}
        for row in rows:
            done = scorer({name: np.array([value]) for name, value in row.items()})
            failed |= {c: e for c, e in zip(done["clip"], done["error"], strict=True) if e}
            scored.append(row)
        return failed

    monkeypatch.setattr(evaluate, "_run", run)
    monkeypatch.setattr(evaluate.driver, "ray_session", lambda *_, **__: contextlib.nullcontext())
    return scored


def flags(folders, *more):
    return [
        "--pred", f"noisy={folders / 'noisy'}", "--pred", str(folders / "copy"),
        "--truth", str(folders / "truth"), "--out", str(folders / "report"),
        "--metrics", "l1,ssim,static", "--identity", "^([^-]+)-", *more,
    ]  # fmt: skip


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_report_contains_scikit_images_values_and_means_over_people(
    folders, in_process, capsys
):
    assert evaluate.main(flags(folders)) == 0
    names = ["anna-walk", "anna-turn", "bea-walk", "bea-turn"]
    wanted = {}
    for name in names:
        truth = video.read(folders / "truth" / f"{name}.mp4").frames / 255
        pictures = [folders / "noisy" / name / f"frame{i}.png" for i in range(18)]
        pred = np.stack([np.asarray(Image.open(path)) for path in pictures]) / 255
        wanted[name] = np.mean(
            [
                structural_similarity(
                    a, b, channel_axis=-1, data_range=1,
                    gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                )
                for a, b in zip(pred, truth, strict=True)
            ]
        )  # fmt: skip
    found = {
        row["clip"]: row
        for row in rows_of(folders / "report" / "clips.csv")
        if (row["method"], row["metric"]) == ("noisy", "ssim")
    }
    assert {name: float(found[name]["value"]) for name in names} == pytest.approx(wanted, abs=1e-4)
    assert [found[name]["identity"] for name in names] == ["anna", "anna", "bea", "bea"]

    cells = {(r["method"], r["metric"]): r for r in rows_of(folders / "report" / "report.csv")}
    assert set(cells) == {(m, s) for m in ("noisy", "copy") for s in ("l1", "ssim", "static")}
    cell = cells["noisy", "ssim"]
    anna = (wanted["anna-walk"] + wanted["anna-turn"]) / 2
    bea = (wanted["bea-walk"] + wanted["bea-turn"]) / 2
    assert float(cell["value"]) == pytest.approx((anna + bea) / 2, abs=1e-4)
    # Two people: the widest resamples are one of them twice.
    assert [float(cell["low"]), float(cell["high"])] == pytest.approx(sorted([anna, bea]), abs=1e-4)
    assert (cell["people"], cell["clips"]) == ("2", "4")
    assert f"{(anna + bea) / 2:.4f}" in capsys.readouterr().out
    text = (folders / "report" / "report.md").read_text()
    assert "| noisy |" in text
    assert ".0256" in text
    assert "another data set" in text


def test_the_page_is_self_contained_and_shows_best_and_worst_side_by_side(folders, in_process):
    assert evaluate.main(flags(folders)) == 0
    page = (folders / "report" / "index.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("<svg") == 3
    assert "best of noisy (SSIM" in page
    assert "worst of copy (SSIM" in page
    content = base64.b64decode(re.search(r'src="data:video/mp4;base64,([^"]+)"', page).group(1))
    (folders / "shown.mp4").write_bytes(content)
    shown = video.read(folders / "shown.mp4").frames
    assert shown.shape == (18, 36, 3 * 32, 3)
    first = re.search(r"<h3>([^<]+)</h3>", page).group(1)
    truth = video.read(folders / "truth" / f"{first}.mp4").frames
    assert np.abs(shown[:, :, :32].astype(int) - truth).mean() < 3


def test_what_is_scored_is_not_scored_again(folders, in_process, monkeypatch, save_pngs):
    assert evaluate.main(flags(folders)) == 0
    assert len(in_process) == 8
    before = (folders / "report" / "report.csv").read_text()
    assert evaluate.main(flags(folders)) == 0
    assert len(in_process) == 8, "all was known, and Ray is not even started"
    assert (folders / "report" / "report.csv").read_text() == before

    # Another input, a new score, other code: only what depends on them.
    save_pngs(folders / "other", draw(9))
    frame = folders / "noisy" / "bea-walk" / "frame3.png"
    frame.write_bytes((folders / "other" / "frame3.png").read_bytes())
    assert evaluate.main(flags(folders)) == 0
    assert [(row["method"], row["clip"]) for row in in_process[8:]] == [("noisy", "bea-walk")]
    assert evaluate.main(flags(folders, "--metrics", "l1,ssim,psnr")) == 0
    assert all("psnr" in row["items"] and "ssim" not in row["items"] for row in in_process[9:])
    assert len(in_process) == 17
    monkeypatch.setattr(scoring, "code_fingerprint", lambda: "other code")
    assert evaluate.main(flags(folders)) == 0
    assert len(in_process) == 25


@pytest.fixture
def quick_features(monkeypatch):
    """The sets' features are grey pixels instead of what the network sees, in the same shape."""

    def lite_features(network, images):
        return torch.nn.functional.interpolate(images, size=(40, 40)).mean(dim=1).flatten(1)

    for name in ("fid-lite", "fvd-lite"):
        quick = replace(metrics.METRICS[name], features=lite_features)
        monkeypatch.setitem(metrics.METRICS, name, quick)


def test_methods_share_the_truth_s_features_and_windows_stay_within_clips(
    folders, quick_features, in_process
):
    assert (
        evaluate.main(flags(folders, "--metrics", "l1,fid-lite,fvd-lite", "--set-resamples", "3"))
        == 0
    )
    sides = [side for row in in_process for _, side, _ in json.loads(row["items"])]
    assert [sides.count(side) for side in ("curve", "pred", "truth")] == [8, 8, 4]
    cells = {(r["method"], r["metric"]): r for r in rows_of(folders / "report" / "report.csv")}
    found = metrics.Networks()
    metric = metrics.METRICS["fvd-lite"]
    names = sorted(clips.find(str(folders / "truth"), "truth"))
    first, second = (
        [metrics.features(metric, clips.read(path)[0], found) for path in paths]
        for paths in (
            [folders / "copy" / f"{name}.mp4" for name in names],
            [folders / "truth" / f"{name}.mp4" for name in names],
        )
    )
    wanted = metrics.distance(metric, first, second)
    cell = cells["copy", "fvd-lite"]
    assert float(cell["value"]) == pytest.approx(wanted, rel=1e-3)
    assert float(cell["low"]) < wanted < float(cell["high"])
    text = (folders / "report" / "report.md").read_text()
    assert "fid-lite ↓" in text.split("## The paper's table 1")[0]
    assert "LPIPS" not in text.split("## EfficientNet-Lite0")[0]


def test_lite_and_published_scores_never_share_a_table(folders):
    pairs = clips.pair({"noisy": str(folders / "noisy")}, str(folders / "truth"))
    cell = report.Cell(
        interval=metrics.Interval(value=1.0, low=0.5, high=2.0), num_people=2, num_clips=4
    )
    everything = list(metrics.METRICS.values())
    found = report.Report(
        metrics=everything,
        pairs={("noisy", pair.clip): pair for pair in pairs},
        people={pair.clip: "anna" for pair in pairs},
        cells={("noisy", metric.name): cell for metric in everything},
        clips={},
        curves={},
        resamples=(2, 2),
        seed=0,
    )
    headers = [report.table(found, group).splitlines()[2] for group in report.groups(found)]
    assert len(headers) == 3
    assert sum("-lite" in header for header in headers) == 1
    assert not any("-lite" in header and "LPIPS" in header for header in headers)


def without(folders, name):
    (folders / "copy" / f"{name}.mp4").unlink()


def shorter(folders, name):
    video.write(folders / "copy" / f"{name}.mp4", draw(0)[:17], 30)


def smaller(folders, name):
    video.write(folders / "copy" / f"{name}.mp4", draw(0, height=34), 30)


def broken(folders, name):
    (folders / "copy" / f"{name}.mp4").write_text("not a video")


def surplus(folders, name):
    video.write(folders / "copy" / "more.mp4", draw(0), 30)


def mixed(folders, name):
    Image.fromarray(draw(0)[0, :30]).save(folders / "noisy" / name / "frame9.png")


@pytest.mark.parametrize(
    ("spoil", "more", "sentence"),
    [
        (without, (), r"pred must hold every clip of truth \(copy\), got no 'bea-walk' in"),
        (surplus, (), r"truth must hold every clip of pred \(copy\), got no 'more' in"),
        (shorter, (), r"truth's 18 frames of 36x32, got 17 frames of 36x32 in"),
        (smaller, (), r"truth's 18 frames of 36x32, got 18 frames of 34x32 in"),
        (smaller, (), r"got 18 frames of 34x32 in .*; --size brings both to one size"),
        (shorter, ("--size", "36x32"), r"truth's 18 frames of 36x32, got 17 frames of 36x32 in"),
        (None, ("--size", "0x32"), r"size must be at least 1x1, got 0x32"),
        (broken, (), r"video: .*(cannot decode|empty)"),
        (mixed, (), r"pictures of a clip must have one size, got 30x32 after 36x32 in"),
        (None, ("--pred", "x=/nowhere"), r"pred must be an existing folder on this disk, got"),
        (None, ("--pred", "noisy=/x"), r"pred must name each method once, got 'noisy' twice"),
        (None, ("--pred", "=x"), r"pred must be DIR or NAME=DIR, got '=x'"),
        (None, ("--truth", "/nowhere"), r"truth must be an existing folder on this disk, got"),
        (None, ("--metrics", "l2"), r"metrics must be among l1, .*, got 'l2'"),
        (None, ("--metrics", "vgg"), r"vgg19-dcbb9e9d\.pth .*, got none"),
        (None, ("--identity", "["), r"identity must be a regular expression, got '\['"),
        (None, ("--identity", "^(x)"), r"identity must be found in every clip's name, got"),
        (None, ("--identity", "column:who"), r"truth must have a manifest\.csv for identity"),
        (None, ("--workers", "0"), r"workers must be at least 1, got 0"),
        (None, ("--set-resamples", "1"), r"set-resamples must be at least 2, got 1"),
        (None, ("--out", "s3://x/y"), r"out must be a path on a disk that all nodes share, got"),
    ],
)
def test_invalid_input_prints_one_line_before_ray_starts(
    folders, monkeypatch, capsys, spoil, more, sentence
):
    monkeypatch.setattr(
        evaluate.driver, "ray_session", lambda *_, **__: pytest.fail("Ray was started")
    )
    if spoil is not None:
        spoil(folders, "bea-walk")
    assert evaluate.main(flags(folders, *more)) == 2
    text = capsys.readouterr().err
    assert re.fullmatch(rf"jobs/evaluate\.py: error: .*{sentence}.*\n", text), text
    assert not (folders / "report").exists()


def test_clips_that_a_score_cannot_take_are_rejected(tmp_path, capsys):
    for name in ("pred", "truth"):
        video.write(tmp_path / name / "a.mp4", draw(0, num_frames=15), 30)
    paths = ["--pred", str(tmp_path / "pred"), "--truth", str(tmp_path / "truth"), "--out", "x"]
    assert evaluate.main([*paths, "--metrics", "fvd-lite"]) == 2
    assert "fvd-lite must have clips of at least 16 frames, got 15" in capsys.readouterr().err
    for name in ("pred", "truth"):
        video.write(tmp_path / name / "a.mp4", draw(0, height=30), 30)
    assert evaluate.main([*paths, "--metrics", "lpips-lite"]) == 2
    assert "at least 32 pixels a side, got 30x32" in capsys.readouterr().err


def test_of_the_usual_scores_those_that_short_clips_have_no_value_for_are_left_out(
    folders, in_process, capsys
):
    for name in ("pred", "truth"):
        video.write(folders / "short" / name / "a.mp4", draw(0, num_frames=10), 30)
    paths = ["--pred", str(folders / "short/pred"), "--truth", str(folders / "short/truth")]
    arguments = [*paths, "--out", str(folders / "report"), "--metrics", "pixels,lite"]
    expected = ["l1", "psnr", "ssim", "tde", "static", "lpips-lite", "fid-lite"]
    assert evaluate.main(arguments) == 0
    assert "without fvd-lite: fvd-lite must have clips of at least 16 frames" in (
        capsys.readouterr().out
    )
    cells = rows_of(folders / "report" / "report.csv")
    assert {row["metric"] for row in cells} == set(expected)


def test_clips_that_all_folders_hold_can_be_scored_alone(folders, in_process, capsys):
    (folders / "copy" / "bea-walk.mp4").unlink()
    video.write(folders / "copy" / "more.mp4", draw(0), 30)
    video.write(folders / "copy" / "anna-walk.mp4", draw(0), 15)
    assert evaluate.main(flags(folders, "--common")) == 0
    out, report = capsys.readouterr().out, (folders / "report" / "report.md").read_text()
    for told in ("since not all folders hold them: bea-walk, more.", "(15 instead of 30)"):
        assert told in out and told in report
    scored = {row["clip"] for row in rows_of(folders / "report" / "clips.csv")}
    assert scored == {"anna-walk", "anna-turn", "bea-turn"}


def test_truths_of_another_size_are_brought_to_that_of_the_renders(folders, in_process, capsys):
    """As those of UBC Fashion, 940x720, to renders of 640x512: whole, bars of their border."""
    noisy = {name: clips.read(path)[0] for name, path in clips.find(folders / "noisy", "x").items()}
    for path in (folders / "truth").iterdir():
        frames = video.read(path).frames.repeat(2, axis=1).repeat(2, axis=2)
        video.write(path, np.pad(frames, ((0, 0), (0, 0), (8, 8), (0, 0)), mode="edge"), 30)
    assert evaluate.main(flags(folders, "--size", "36x32")) == 0
    assert "All frames were brought to 36x32 pixels" in capsys.readouterr().out
    rows = rows_of(folders / "report" / "clips.csv")
    for name, frames in noisy.items():
        # 72x80 pixels become 29x32 rows and columns, 3 rows of wall above and 4 below.
        truth = video.read(folders / "truth" / f"{name}.mp4").frames
        small = [Image.fromarray(frame).resize((32, 29), Image.Resampling.BOX) for frame in truth]
        whole = np.pad(np.stack(small), ((0, 0), (3, 4), (0, 0), (0, 0)), mode="edge")
        expected = np.abs(frames / 255 - whole / 255).mean()
        (got,) = (
            float(row["value"])
            for row in rows
            if (row["method"], row["clip"], row["metric"]) == ("noisy", name, "l1")
        )
        assert got == pytest.approx(expected, abs=2e-3)
    page = (folders / "report" / "index.html").read_text()
    assert "All frames were brought to 36x32 pixels" in page
    num_scored = len(in_process)
    assert evaluate.main(flags(folders, "--size", "36x32")) == 0
    assert len(in_process) == num_scored, "nothing is scored twice"
    assert evaluate.main(flags(folders, "--size", "18x16")) == 0
    assert len(in_process) == 2 * num_scored, "another size has other scores"


def test_a_clip_that_breaks_off_gives_no_report(folders, in_process, capsys):
    """The header promises frames that the rest does not hold: seen only when it is decoded."""
    path = folders / "copy" / "bea-walk.mp4"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - len(content) // 4])
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 18, "the header is at the front"
    assert evaluate.main(flags(folders)) == 1
    out = capsys.readouterr().out
    assert "rejected copy/bea-walk: " in out
    assert "no report: 1 clips could not be scored" in out
    assert not (folders / "report" / "report.md").exists()


def test_a_score_that_does_not_exist_for_a_clip_is_left_out_and_reported(folders, in_process):
    moving = np.random.default_rng(0).integers(0, 255, (18, 36, 32, 3), dtype=np.uint8)
    for name in ("truth", "copy"):
        video.write(folders / name / "bea-walk.mp4", moving, 30)
    assert evaluate.main(flags(folders)) == 0
    cells = {(r["method"], r["metric"]): r for r in rows_of(folders / "report" / "report.csv")}
    assert cells["copy", "static"]["clips"] == "3"
    # The mean over people, although one of them has two clips and the other one.
    static = {
        row["clip"]: float(row["value"])
        for row in rows_of(folders / "report" / "clips.csv")
        if (row["method"], row["metric"]) == ("noisy", "static")
    }
    wanted = ((static["anna-walk"] + static["anna-turn"]) / 2 + static["bea-turn"]) / 2
    assert float(cells["noisy", "static"]["value"]) == pytest.approx(wanted)
    text = (folders / "report" / "report.md").read_text()
    assert "static-region variance exists for 3 of 4 clips" in text


@pytest.mark.ray
def test_on_ray_as_in_this_process(ray_cluster, folders, in_process, monkeypatch):
    assert evaluate.main(flags(folders)) == 0
    wanted = (folders / "report" / "report.csv").read_text()
    monkeypatch.undo()
    assert evaluate.main(flags(folders, "--out", str(folders / "other"), "--workers", "1")) == 0
    assert (folders / "other" / "report.csv").read_text() == wanted
    assert len(list((folders / "other" / "scores").glob("*.npy"))) == 24
