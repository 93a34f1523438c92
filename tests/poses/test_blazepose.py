"""BlazePose on rendered people."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from dreampose.errors import InputError, SeveralPeopleWarning
from dreampose.io import video
from dreampose.poses import BlazePose, CatwalkPose, Motion, extract
from dreampose.poses.landmarks import INDEX, point
from dreampose.types import Clip


@pytest.fixture(scope="module")
def blazepose() -> BlazePose:
    return BlazePose()


@pytest.fixture(scope="module")
def seen(turn, blazepose) -> Motion:
    return extract(turn, blazepose)


@pytest.fixture(scope="module")
def truth(turn) -> Motion:
    return extract(turn, CatwalkPose())


def heading(motion: Motion) -> np.ndarray:
    """Direction of the line from right to left, degrees around the vertical axis."""
    across = point(motion.joints, "left_shoulder") - point(motion.joints, "right_shoulder")
    across = across + point(motion.joints, "left_hip") - point(motion.joints, "right_hip")
    return np.degrees(np.arctan2(across[:, 2], across[:, 0]))


def test_a_full_turn_is_read_without_a_gap_close_to_the_truth(seen, truth):
    assert seen.num_filled == 0
    assert seen.confidence.min() > 0.3
    limbs = list(range(INDEX["left_shoulder"], 33))
    off = np.linalg.norm((seen.joints - truth.joints)[:, limbs, :2], axis=-1)
    assert np.median(off) < 0.03 * 145  # of a person of about 145 pixels
    turned = (heading(seen) - heading(truth) + 180) % 360 - 180
    assert np.median(np.abs(turned)) < 12
    assert np.abs(turned).max() < 45


def test_the_painted_body_covers_the_person(seen, truth):
    body, person = (seen.maps[:, 0] > 0), (truth.maps[:, 0] > 0)
    # Clothes and hair reach beyond the painted body, the body hardly beyond the person.
    assert (body & person).sum() / body.sum() > 0.85
    assert (body & person).sum() / person.sum() > 0.5


def test_exact_maps_are_the_files_atlas(turn, rendered, truth):
    with np.load(rendered.with_suffix(".npz")) as file:
        parts, uv = file["parts"], file["uv"]
    np.testing.assert_array_equal((truth.maps > 0).all(axis=1), parts > 0)
    np.testing.assert_allclose(
        np.moveaxis(truth.maps, 1, -1)[parts > 0], uv[parts > 0] / 65535, atol=0.5 / 255 + 1 / 255
    )
    half = extract(turn, CatwalkPose(), frames=(4, 8))
    np.testing.assert_array_equal(half.maps, truth.maps[4:])
    assert not truth.painted


def test_exact_maps_need_the_file(turn, rendered, tmp_path):
    with pytest.raises(InputError, match="needs the ground truth beside the video"):
        extract(replace(turn, source=str(tmp_path / "turn.mp4")), CatwalkPose())
    with pytest.raises(InputError, match="ground truth must cover the clip's"):
        extract(replace(turn, frames=turn.frames[:, :80]), CatwalkPose())


def test_the_estimator_travels_and_repeats_itself(turn, seen, blazepose):
    copy = pickle.loads(pickle.dumps(blazepose))
    again = extract(replace(turn, frames=turn.frames[:2]), copy)
    np.testing.assert_array_equal(again.joints[0], seen.joints[0])


def stage(people: list[tuple[np.ndarray, float, int]], background=235) -> np.ndarray:
    """One 240x480 picture with pictures of people, scaled, at horizontal places, floor at 230."""
    import cv2

    canvas = np.full((240, 480, 3), background, np.uint8)
    for picture, scale, left in people:
        size = (round(128 * scale), round(160 * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        low, high = max(left, 0), min(left + size[0], 480)
        canvas[230 - size[1] : 230, low:high] = small[:, low - left : high - left]
    return canvas


def test_the_larger_of_two_is_followed_and_named(turn, blazepose):
    first, second = turn.frames[0], turn.frames[3]
    frames = np.stack([stage([(first, 1.3, 280 + 4 * i), (second, 0.9, 20)]) for i in range(5)])
    clip = Clip(frames=frames, fps=10.0, source="two.mp4")
    with pytest.warns(SeveralPeopleWarning, match=r"two people are in frame 0 of two.mp4") as said:
        motion = extract(clip, blazepose, height=240, width=480)
    hips = point(motion.joints, "middle_hip")
    assert hips[:, 0] == pytest.approx([363 + 4 * i for i in range(5)], abs=8)
    named = f"x={hips[0, 0]:.0f}, y={hips[0, 1]:.0f} in frame 0 (the largest)"
    assert named in str(said[0].message)


def test_the_requested_person_is_tracked(turn):
    frames = np.stack([stage([(turn.frames[0], 1.3, 290), (turn.frames[3], 0.9, 20)])] * 2)
    with pytest.warns(SeveralPeopleWarning, match="nearest to the place given"):
        motion = extract(
            Clip(frames=frames, fps=10.0), BlazePose(person=(80, 150)), height=240, width=480
        )
    assert point(motion.joints, "middle_hip")[0, 0] == pytest.approx(78, abs=8)


@pytest.mark.filterwarnings("ignore::dreampose.errors.SeveralPeopleWarning")
def test_a_second_person_does_not_steal_the_pose(turn, blazepose):
    """A larger person appears, the followed one is hidden for a moment and comes back."""
    mine, other = turn.frames[0], turn.frames[4]
    frames = []
    for index in range(12):
        people = [] if index in (5, 6) else [(mine, 1.0, 40 + 3 * index)]
        if index >= 3:
            people.append((other, 1.4, 300))
        frames.append(stage(people))
    motion = extract(Clip(frames=np.stack(frames), fps=10.0), blazepose, height=240, width=480)
    assert np.flatnonzero(motion.confidence == 0).tolist() == [5, 6]
    hips = point(motion.joints, "middle_hip")[:, 0]
    assert hips == pytest.approx([104 + 3 * i for i in range(12)], abs=10)


def test_a_part_of_the_person_is_not_a_second_one(turn, blazepose):
    """Tall pictures are searched in squares as well, and the lower one cuts this person's head."""
    import cv2

    frame = cv2.resize(turn.frames[0], (160, 200))
    tall = np.full((200, 140, 3), 235, np.uint8)
    tall[:] = frame[:, 10:150]
    motion = extract(Clip(frames=tall[None], fps=1.0), blazepose, height=200, width=140)
    hips, shoulders = (point(motion.joints, f"middle_{name}")[0] for name in ("hip", "shoulder"))
    assert hips[1] == pytest.approx(95, abs=12)
    assert shoulders[1] < hips[1]


def test_a_picture_without_a_person_is_rejected(blazepose):
    empty = np.stack([stage([])] * 3)
    noise = np.random.default_rng(0).integers(0, 256, (3, 160, 128, 3), np.uint8)
    for frames in (empty, noise):
        with pytest.raises(InputError, match="got nobody in any of the 3 frames"):
            extract(Clip(frames=frames, fps=10.0), blazepose)


def test_a_wide_picture_gives_the_points_of_its_own_pixels(turn, blazepose):
    """A person who is small in a wide picture is read at full resolution, then placed."""
    frame = stage([(turn.frames[0], 1.0, 250)])
    wide = extract(Clip(frames=frame[None], fps=1.0), blazepose, height=160, width=128)
    full = extract(Clip(frames=frame[None], fps=1.0), blazepose, height=240, width=480)
    scale = 128 / 480
    np.testing.assert_allclose(
        wide.joints[0, :, :2], full.joints[0, :, :2] * scale + [0, (160 - 64) / 2], atol=1e-3
    )
    assert video.fit(frame[None], 160, 128)[0, 100].std() > 0
