"""Rendered clips and their ground truth."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.synthetic import clip, gait, scene
from dreampose.synthetic.identity import identity
from dreampose.synthetic.mesh import Surface, load, shape

SIZE = {"height": 160, "width": 128}
LEFT, RIGHT = {5, 8, 10, 12, 14, 15, 17, 19, 21, 4}, {6, 7, 9, 11, 13, 16, 18, 20, 22, 3}
LIMBS = {  # left landmark: DensePose parts that may be visible there
    15: {4, 19, 21},
    25: {8, 10, 12, 14},
    27: {5, 12, 14},
    31: {5},
}
MIRROR = {4: 3, 5: 6, 8: 7, 10: 9, 12: 11, 14: 13, 15: 16, 17: 18, 19: 20, 21: 22}
PEOPLE = (
    (0, "turn"),
    (4, "walk"),
    (5, "turn"),
    (7, "walk"),
    (2, "walk"),
    (10, "turn"),
    (6, "across"),
)


@pytest.fixture(scope="module")
def clips():
    return [
        clip.render_clip(identity(number, "test"), motion=motion, num_frames=6, fps=5, **SIZE)
        for number, motion in PEOPLE
    ]


def test_rendering_is_deterministic(clips):
    again = clip.render_clip(identity(0, "test"), motion="turn", num_frames=6, fps=5, **SIZE)
    for name in ("frames", "parts", "uv", "cloth", "garment", "joints"):
        np.testing.assert_array_equal(getattr(again, name), getattr(clips[0], name))


UNROUNDED = """
import hashlib, cv2
from dreampose.synthetic.clip import render_clip
from dreampose.synthetic.identity import identity
seen, resize = hashlib.sha256(), cv2.resize
def shrink(picture, *args, **kwargs):
    seen.update(picture.tobytes())
    return resize(picture, *args, **kwargs)
cv2.resize = shrink
render_clip(identity(5, "train"), motion="walk", num_frames=1, height=160, width=128)
print(seen.hexdigest())
"""
"""Prints a checksum of the supersampled float32 pictures."""


def test_frames_do_not_depend_on_the_processor():
    """BLAS and numpy with the instruction sets of older processors."""
    older = {"OPENBLAS_CORETYPE": "Prescott", "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4"}
    here, there = (
        subprocess.run(
            [sys.executable, "-c", UNROUNDED],
            env=os.environ | change, capture_output=True, text=True, check=True,
        ).stdout
        for change in ({}, older)
    )  # fmt: skip
    assert len(here.strip()) == 64
    assert here == there


def test_no_skin_shows_through_cloth(clips):
    assert {made.identity.outfit for made in clips} == {"dress", "skirt", "trousers"}
    for made in clips:
        assert clip.skin_through_cloth(made) <= 0.001


def test_skin_through_cloth_is_counted(clips):
    made = clips[1]
    thigh = (made.cloth == Surface.BOTTOM) & np.isin(made.parts, (7, 8, 9, 10))
    poked = np.where(thigh, Surface.SKIN, made.cloth).astype(np.uint8)
    worn = np.isin(poked, (Surface.TOP, Surface.BOTTOM, Surface.SHOES)).sum()
    share = clip.skin_through_cloth(dataclasses.replace(made, cloth=poked))
    # A few pixels show the inner side of the skirt, which does not count.
    assert share == pytest.approx(thigh.sum() / worn, rel=0.1)


def test_maps_cover_the_person_and_nothing_else(clips):
    for made in clips:
        person = made.parts > 0
        assert (person == (made.cloth > 0)).all()
        assert (person == (made.uv > 0).all(-1)).all()
        assert (made.uv[~person] == 0).all()
        assert made.parts.max() <= 24
        share = person.mean((1, 2))
        assert (share > 0.06).all()
        assert (share < 0.4).all()


def test_tall_people_fit_into_the_picture():
    tall = [number for number in range(60) if _height(number) > 19]
    assert tall
    for number in tall[:2]:
        made = clip.render_clip(
            identity(number, "train"), motion="walk", num_frames=4, fps=4, **SIZE
        )
        person = made.parts > 0
        assert not np.concatenate([person[:, 0], person[:, -1]], axis=1).any()


def _height(number):
    points = shape(load(), dict(identity(number, "train").targets))
    return np.ptp(points[:13380, 1])


def test_uv_are_continuous_inside_a_part(clips):
    for made in clips:
        same = (made.parts[:, :, 1:] == made.parts[:, :, :-1]) & (made.parts[:, :, 1:] > 0)
        same &= (made.cloth[:, :, 1:] == made.cloth[:, :, :-1]) & (made.cloth[:, :, 1:] > 3)
        jump = np.linalg.norm(np.diff(made.uv, axis=2), axis=-1)[same]
        assert np.median(jump) < 0.02
        assert (jump > 0.15).mean() < 0.02


def test_uv_separate_left_from_right_and_front_from_back(clips):
    made = clips[0]
    places = {part: made.uv[made.parts == part].mean(0) for part in (8, 7, 1, 2, 23, 24)}
    assert np.linalg.norm(places[7] - places[8]) > 0.1
    front, back = made.uv[made.parts == 2], made.uv[made.parts == 1]
    # On the atlas, the back of the trunk lies on both sides of its front.
    assert np.abs(back[:, 0] - 0.38).mean() > np.abs(front[:, 0] - 0.38).mean() + 0.05


def test_landmarks_lie_on_their_limbs(clips):
    right = total = 0
    for made in clips:
        for frame in range(len(made.frames)):
            for left_point, left_parts in LIMBS.items():
                for point, allowed in (
                    (left_point, left_parts),
                    (left_point + 1, {MIRROR[part] for part in left_parts}),
                ):
                    column, row = np.round(made.joints[frame, point, :2]).astype(int)
                    seen = set(made.parts[frame, row - 2 : row + 3, column - 2 : column + 3].flat)
                    other = RIGHT if point == left_point else LEFT
                    # Skip limbs that another limb or the skirt occludes.
                    if allowed & seen or seen & other - allowed:
                        total += 1
                        right += bool(allowed & seen)
    assert total > 100
    assert right / total > 0.85


def test_clips_start_in_front_view_and_only_a_turn_shows_the_back(clips):
    for made in clips:
        nose, ears = made.joints[:, 0, 2], made.joints[:, [7, 8], 2].mean(1)
        assert nose[0] < ears[0]
        shoulders = made.joints[:, 11, 0] - made.joints[:, 12, 0]
        assert shoulders[0] > 0, "in front view the left shoulder is on the right of the picture"
        if made.motion != "across":
            assert (shoulders.min() < 0) == (made.motion == "turn")


def test_a_walk_across_turns_sideways_and_bends_the_elbows_forward(clips):
    made = clips[-1]
    assert made.motion == "across"
    late = made.joints[3:, :, :2]
    ahead = np.sign(late[:, 0, 0] - late[:, [11, 12], 0].mean(1))
    assert (ahead == np.sign(made.identity.turn_rate)).all(), "the nose leads"
    widths = np.abs(made.joints[:, 11, 0] - made.joints[:, 12, 0])
    assert widths[3:].max() < 0.7 * widths[0]
    for shoulder, elbow, wrist in ((11, 13, 15), (12, 14, 16)):
        upper, lower = late[:, elbow] - late[:, shoulder], late[:, wrist] - late[:, elbow]
        lengths = np.linalg.norm(upper, axis=-1) * np.linalg.norm(lower, axis=-1)
        bend = ahead * (lower[:, 0] * upper[:, 1] - lower[:, 1] * upper[:, 0]) / lengths
        assert (bend > -0.1).all(), "an arm bent backward"
        assert bend.max() > 0.3, "an arm that never bends"


def test_feet_stand_on_the_floor():
    person = identity(5, "test")
    dressed = scene.build(person)
    for pose in gait.poses(person, motion="walk", num_frames=8, fps=8, arm_lift=30, stance=8):
        points = scene.pose(dressed, pose).points
        assert points[dressed.soles, 1].min() == pytest.approx(0, abs=1e-9)
        assert points[:, 1].min() > -0.2


@pytest.mark.parametrize("number", range(9))
def test_garments_cover_chest_and_hips(number):
    dressed = scene.build(identity(number, "val"))
    cover, sizes = dressed.clothes.covered, dressed.measures
    body = shape(dressed.mesh, dict(dressed.person.targets))[: len(cover)]
    x, y = np.abs(body[:, 0]), body[:, 1]
    chest = (x < 1.2) & (y > sizes.waist - 0.2) & (y < sizes.head("Neck")[1] - 1.5)
    assert chest.sum() > 500
    assert (cover[chest] >= 0).all()
    loins = (x < 1.4) & (y > sizes.hips - 1.5) & (y < sizes.waist)
    assert loins.sum() > 300
    if dressed.clothes.skirt is None:
        assert (cover[loins] >= 0).all()
    else:
        hem = dressed.clothes.skirt.heights[-1] + sizes.head("Hips")[1]
        assert hem < sizes.hips - 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"motion": "run"}, "motion"),
        ({"num_frames": 0}, "num_frames"),
        ({"height": 161}, "height"),
        ({"width": 16}, "width"),
        ({"fps": 0.0}, "fps"),
    ],
)
def test_errors_name_the_argument(change, named):
    wanted = {"motion": "walk", "num_frames": 1, "height": 64, "width": 48, "fps": 24.0}
    with pytest.raises(InputError, match=f"^{named} must"):
        clip.render_clip(identity(0, "train"), **(wanted | change))
