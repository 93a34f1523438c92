"""Scores and report of the catwalk benchmark."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from benchmarks import data, people, report
from dreampose import metrics
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses import Motion, landmarks

PROTOCOL = people.Protocol(
    model="m", fingerprint="f", preset="fast", estimator="blazepose", num_steps=None,
    num_vae_steps=None, num_photos=3,
)  # fmt: skip


@pytest.fixture
def frames(rng):
    return rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_scores_are_means_over_frames_and_flicker_is_measured_within_pairs(frames, rng):
    truth = rng.integers(0, 256, frames.shape, dtype=np.uint8)
    found = people.measure(frames, truth, metrics.Networks())
    a, b = frames / 255.0, truth / 255.0
    assert found["l1"] == pytest.approx(np.abs(a - b).mean())
    pairs = [np.abs((a[i + 1] - a[i]) - (b[i + 1] - b[i])).mean() for i in range(0, 12, 2)]
    assert found["tde"] == pytest.approx(np.mean(pairs))
    ssim = [
        structural_similarity(x, y, channel_axis=-1, data_range=1.0, gaussian_weights=True,
                              sigma=1.5, use_sample_covariance=False)
        for x, y in zip(a, b, strict=True)
    ]  # fmt: skip
    assert found["ssim"] == pytest.approx(np.mean(ssim))


def test_nearest_finds_the_closest_training_frame(frames, rng):
    order = rng.permutation(12)
    noisy = np.clip(frames[order].astype(int) + rng.integers(-9, 10, frames.shape), 0, 255)
    assert np.array_equal(people.nearest(noisy.astype(np.uint8), frames), frames[order])


def test_people_of_the_identity_test_have_the_same_pose_and_differ_in_appearance():
    clips = [people.turning(people.test_person(number)) for number in (0, 1)]
    left, right = (landmarks.NAMES.index(f"{side}_shoulder") for side in ("left", "right"))
    facing = []
    for clip in clips:
        across = clip.joints[:, left] - clip.joints[:, right]
        facing.append(np.degrees(np.arctan2(across[:, 2], across[:, 0])))
    apart = (facing[0] - facing[1] + 180) % 360 - 180
    assert np.abs(apart).max() < 5
    assert people.test_person(1).start_yaw != people.test_person(0).start_yaw
    assert not np.array_equal(clips[0].frames, clips[1].frames)


def test_correct_joints_is_one_for_the_same_pose_and_zero_for_a_shifted_one():
    walk = Motion.load(Path("examples/motions/real-walk.npz")).between(0, 8)
    assert people.correct_joints(walk, walk) == 1.0
    moved = walk.joints.copy()
    moved[..., 0] += 40
    assert people.correct_joints(replace(walk, joints=moved), walk) == 0.0


def test_frames_for_finetuning_are_not_scored():
    assert not {0, data.NUM_FRAMES // 4, data.NUM_FRAMES // 2} & set(people.SCORED)


def make_person(folder, rng, *, scale, tuned):
    truth = rng.integers(40, 200, (12, 32, 24, 3)).astype(np.uint8)
    away = {"copy": 40, "nearest": 30, "VAE": 5, "base": 20, "finetuned": 10}
    methods = list(away) if tuned else list(away)[:-1]
    scores = {}
    for motion in ("walk", "turn"):
        pictures = {m: truth + np.uint8(away[m]) for m in methods}
        np.savez(folder / f"{motion}.npz", photo=truth[0], truth=truth,
                 maps=rng.random((12, 2, 32, 24), dtype=np.float32), **pictures)  # fmt: skip
        scores[motion] = {
            m: {"l1": scale * away[m] / 255, "psnr": 20.0, "ssim": 1 - away[m] / 100, "tde": 0.1,
                "lpips-lite": 0.1}
            for m in methods
        }  # fmt: skip
    people.write_result(
        folder / "result.json", PROTOCOL, scores=scores, finetune_seconds=90.0 if tuned else None
    )
    np.savez(folder / "pose.npz", pred=truth[:4], truth=truth[:4])
    people.write_result(folder / "pose.json", PROTOCOL)
    maps = rng.random((3, 2, 32, 24), dtype=np.float32)
    pck = {"base": 0.8, "finetuned": 0.9} if tuned else {"base": 0.8}
    np.savez(folder / "real.npz", photo=truth[0], maps=maps, **dict.fromkeys(pck, truth[:3]))
    people.write_result(folder / "real.json", PROTOCOL, pck=pck)


def test_report_contains_scores_and_unmet_targets(tmp_path, rng):
    names = ["a", "b", "c"]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        make_person(tmp_path / name, rng, scale=1 + number / 10, tuned=number < 2)
    text = report.write(tmp_path, names, PROTOCOL)
    assert "- base, L1 / copy: 0.500, wanted at most 0.7: met" in text
    assert "- finetuned, L1 / copy (foundation): 0.250, wanted at most 0.55: met" in text
    # copy 0.60, VAE 0.95, finetuned 0.90 of SSIM
    assert "gap between copy and VAE closed: 0.857, wanted at least 0.6: met" in text
    assert "identity kept, 3 people in 4 poses: 1.000, wanted at least 0.9: met" in text
    assert "base, PCK@0.2 of a real walk, 3 people: 0.800, wanted at least 0.85: NOT met" in text
    assert "finetuned, PCK@0.2 of a real walk, 2 people: 0.900, wanted at least 0.85: met" in text
    assert "Finetuning took 90 s" in text
    with (tmp_path / "report.csv").open(newline="") as file:
        rows = {(r["people"], r["method"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["3", "base", "l1"]["value"]) == pytest.approx(1.1 * 20 / 255, rel=1e-5)
    assert float(rows["2", "finetuned", "l1"]["value"]) == pytest.approx(1.05 * 10 / 255, rel=1e-5)
    assert ("3", "finetuned", "l1") not in rows
    # Photo, pose and base of all, finetuned of two.
    assert video.read(tmp_path / "result.mp4").frames.shape[1:3] == (32, 11 * 24)
    with Image.open(tmp_path / "result.gif") as gif:
        assert (gif.n_frames, gif.size) == (3, (11 * 24, 32))
    assert video.read_photo(tmp_path / "sheet.png").shape[1] == 9 * 24


def test_results_of_another_protocol_are_not_reused(tmp_path):
    file = tmp_path / "result.json"
    assert not people.is_done(file, PROTOCOL)
    people.write_result(file, PROTOCOL)
    assert people.is_done(file, PROTOCOL)
    assert not people.is_done(file, replace(PROTOCOL, preset="exact"))
    assert json.loads(file.read_text())["protocol"] == asdict(PROTOCOL)


def test_different_checksums_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.mp4").write_bytes(b"one")
    lines = data.checksums(tmp_path, "test")
    known = tmp_path / "known.sha256"
    known.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(data, "CHECKSUMS", known)
    data.compare(lines)
    (tmp_path / "test" / "a.mp4").write_bytes(b"two")
    with pytest.raises(InputError, match=r"got 1 different ones of 1, such as test/a\.mp4"):
        data.compare(data.checksums(tmp_path, "test"))
