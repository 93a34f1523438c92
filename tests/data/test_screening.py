"""Screening of videos."""

from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest

from dreampose.data.screening import (
    Screener,
    ScreeningLimits,
    VideoStatistics,
    find_cuts,
    perceptual_hash,
    rejection_reasons,
)
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.synthetic.clip import render_clip
from dreampose.synthetic.identity import identity
from dreampose.types import Clip

GOOD = VideoStatistics(
    height=640,
    width=512,
    num_frames=300,
    fps=30.0,
    coverage=1.0,
    whole=1.0,
    most_people=1,
    cuts=(),
    hashes=("0f" * 32, "33" * 32, "55" * 32, "5a" * 32),
)


@pytest.fixture(scope="module")
def people():
    """Two people in the same studio, two frames each."""
    return [
        render_clip(identity(seed, "test"), motion="turn", num_frames=2, height=160, width=128,
                    fps=8).frames
        for seed in (11, 12)
    ]  # fmt: skip


def test_what_is_in_the_picture_is_measured(people):
    alone = people[0]
    empty = np.full_like(alone, 230)
    both = np.concatenate(people, axis=2)
    legless = alone[:, : alone.shape[1] // 2]
    measure = Screener()
    clip = Clip(frames=alone, fps=8.0)
    got = measure(clip)
    assert (got.coverage, got.whole, got.most_people, got.cuts) == (1, 1, 1, ())
    assert (got.height, got.width, got.seconds) == (160, 128, 0.25)
    assert VideoStatistics.from_dict(asdict(got)) == got
    assert measure(replace(clip, frames=np.concatenate([alone, empty]))).coverage == 0.5
    assert measure(replace(clip, frames=empty)).most_people == 0
    assert measure(replace(clip, frames=both)).most_people == 2
    assert measure(replace(clip, frames=legless)).whole == 0


def test_a_cut_is_found_and_movement_is_none():
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(0, 256, (8, 20, 3), np.uint8), (200, 80))
    other = cv2.resize(rng.integers(0, 256, (8, 20, 3), np.uint8), (200, 80))
    pan = np.stack([scene[:, i : i + 64] for i in range(30)])
    assert find_cuts(pan) == []
    after = np.stack([other[:, i : i + 64] for i in range(10)])
    assert find_cuts(np.concatenate([pan[:12], after])) == [12]
    assert find_cuts(np.concatenate([pan[:3], after, pan[20:]])) == [3, 13]
    # A picture that flickers throughout has no shots.
    assert find_cuts(np.stack([scene, other] * 8)[:, :, :64]) == []


def test_photo_hashes_survive_recompression_and_differ_between_people(people, tmp_path):
    one, other = people[0][0], people[1][0]
    smaller = cv2.resize(one, (96, 120), interpolation=cv2.INTER_AREA)
    brighter = np.clip(one.astype(int) + 12, 0, 255).astype(np.uint8)
    video.write(tmp_path / "a.mp4", [smaller] * 2, 10)
    again = video.read(tmp_path / "a.mp4").frames[0]
    for copy in (smaller, brighter, again):
        assert (perceptual_hash(one) != perceptual_hash(copy)).mean() < 0.05
    assert (perceptual_hash(one) != perceptual_hash(other)).mean() > 0.12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"height": 240, "width": 300}, "resolution: 240 pixels, not 256"),
        ({"num_frames": 20}, "length: 0.67 s, not 1 s"),
        ({"most_people": 2}, "people: 2 in one frame, not 1"),
        ({"coverage": 0.75}, "pose coverage: a person in 75% of the frames, not 90%"),
        ({"whole": 0.25}, "whole body: in 25% of the frames, not 50%"),
        ({"cuts": (7, 90)}, "cuts: 2, at frame 7, 90"),
    ],
)
def test_each_violated_limit_is_named(change, said):
    assert rejection_reasons(
        {"a": GOOD, "b": replace(GOOD, **change)}, ScreeningLimits(nearest=0)
    ) == {
        "a": [],
        "b": [said],
    }


def test_of_duplicates_the_best_one_stays():
    flipped = ("0e" * 32, *GOOD.hashes[1:])
    far = tuple("f0" * 32 for _ in range(4))
    reasons = rejection_reasons(
        {
            "small": replace(GOOD, height=320, width=256),
            "large": replace(GOOD, hashes=flipped),
            "short": replace(GOOD, num_frames=100),
            "other": replace(GOOD, hashes=far),
            # It would be the best copy, but it cannot stand for those that are good.
            "cut": replace(GOOD, height=1280, width=1024, cuts=(5,)),
        },
        ScreeningLimits(),
    )
    assert reasons["large"] == reasons["other"] == []
    assert reasons["small"] == reasons["short"] == ["duplicate of large"]
    assert reasons["cut"] == ["cuts: 1, at frame 5"]
    assert rejection_reasons({"a": GOOD, "b": GOOD}, ScreeningLimits(nearest=0)) == {
        "a": [],
        "b": [],
    }


def test_limits_out_of_range_are_rejected():
    with pytest.raises(InputError, match=r"coverage must be in \[0, 1\], got 90"):
        ScreeningLimits(coverage=90)
    with pytest.raises(InputError, match="most_cuts must be at least 0, got -1"):
        ScreeningLimits(most_cuts=-1)
