"""Painted maps at full and at latent resolution."""

import numpy as np
import pytest

from dreampose.poses import from_grid, paint, to_grid
from dreampose.poses.landmarks import INDEX, body_height

HEIGHT, WIDTH = 160, 128


def at(maps, joints, *names):
    """U and V at the middle of some points."""
    x, y = np.mean([joints[0, INDEX[name], :2] for name in names], axis=0)
    return maps[0, :, int(y), int(x)]


def test_background_is_zero_and_the_person_above_zero_in_steps_of_a_byte(skeleton):
    maps = paint(skeleton(), HEIGHT, WIDTH)
    person = (maps > 0).any(axis=1)
    assert maps.dtype == np.float32
    assert maps.max() <= 1
    assert 0.05 < person.mean() < 0.4
    assert (maps[:, 0][person] > 0).all()
    assert (maps[:, 1][person] > 0).all()
    np.testing.assert_allclose(maps * 255, np.round(maps * 255), atol=1e-4)
    # The painted person is as tall as the skeleton is meant to be, head and soles included.
    rows = np.flatnonzero(person[0].any(axis=1))
    assert len(rows) == pytest.approx(128, rel=0.05)
    assert body_height(skeleton())[0] == pytest.approx(128, rel=0.08)


def test_torso_tells_eight_directions_apart_even_on_the_grid(skeleton):
    grids, chests = [], []
    raised = {  # so that no arm hides the torso
        f"{side}_{name}": (sign * 0.1, y, 0.0)
        for side, sign in (("left", 1), ("right", -1))
        for name, y in (("elbow", -0.45), ("wrist", -0.6), ("index", -0.66), ("pinky", -0.66))
    }
    for yaw in range(0, 360, 45):
        joints = skeleton(yaw, **raised)
        maps = paint(joints, HEIGHT, WIDTH)
        grids.append(to_grid(maps, (20, 16))[0].numpy())
        chests.append(at(maps, joints, "left_shoulder", "right_shoulder", "left_hip", "right_hip"))
    for a in range(8):
        for b in range(a):
            assert np.abs(chests[a] - chests[b]).max() > 0.03, (a, b)
            assert np.abs(grids[a] - grids[b]).sum() > 4, (a, b)
    # V falls from the back to the front, whichever way round the person turns.
    values = [chest[1] for chest in chests]
    assert values[4] == max(values)
    assert values[0] == min(values)
    # The sides are told apart by U: turned to their own left, a person shows the right side.
    assert chests[2][0] < chests[6][0] - 0.1


def test_left_and_right_limbs_differ_from_both_sides(skeleton):
    for yaw in (0, 180):
        joints = skeleton(yaw)
        maps = paint(joints, HEIGHT, WIDTH)
        for a, b in (("hip", "knee"), ("knee", "ankle"), ("elbow", "wrist")):
            left = at(maps, joints, f"left_{a}", f"left_{b}")
            right = at(maps, joints, f"right_{a}", f"right_{b}")
            assert right[1] - left[1] > 0.3
            assert left[0] == pytest.approx(right[0], abs=0.02)


def test_the_nearer_leg_covers_the_farther_one(skeleton):
    turned_left = paint(skeleton(90), HEIGHT, WIDTH)
    turned_right = paint(skeleton(-90), HEIGHT, WIDTH)
    knee = int(80 + 0.24 * 128)
    # Turned to the own left, the right leg is the near one.
    assert turned_left[0, 1, knee, 64] > 0.55
    assert turned_right[0, 1, knee, 64] < 0.5


def test_a_leg_swung_forward_differs_from_one_swung_back(skeleton):
    def shin(depth):
        joints = skeleton(left_knee=(0.06, 0.22, depth / 2), left_ankle=(0.06, 0.43, depth))
        return at(paint(joints, HEIGHT, WIDTH), joints, "left_knee", "left_ankle")[1]

    assert shin(-0.2) > shin(0.2) + 0.05


def test_the_head_turns_by_itself(skeleton):
    def head(nose):
        joints = skeleton(nose=nose)
        return at(paint(joints, HEIGHT, WIDTH), joints, "left_ear", "right_ear")

    ahead, left, right = head((0, -0.4, -0.06)), head((0.1, -0.4, 0.0)), head((-0.1, -0.4, 0.0))
    assert left[0] < ahead[0] < right[0]
    assert ahead[1] < min(left[1], right[1])


def test_twice_the_size_is_the_same_grid(skeleton):
    small = to_grid(paint(skeleton(30), HEIGHT, WIDTH), (20, 16))
    large = to_grid(
        paint(skeleton(30, height=256, x=128, hip_y=160), 2 * HEIGHT, 2 * WIDTH), (20, 16)
    )
    assert (small - large).abs().mean() < 0.004


def test_points_outside_the_picture_are_cut_off(skeleton):
    beside = paint(skeleton(x=-200), HEIGHT, WIDTH)
    assert not beside.any()
    half = paint(skeleton(x=0), HEIGHT, WIDTH)
    assert half[..., :10].any()
    assert not half[..., 60:].any()


def test_thickness_is_steady_where_the_measured_height_is_not(skeleton):
    joints = np.concatenate([skeleton()] * 9)
    joints[4, INDEX["left_ear"], 1] += 8
    joints[4, INDEX["right_ear"], 1] += 8
    maps = paint(joints, HEIGHT, WIDTH)
    knee = int(80 + 0.24 * 128)
    widths = (maps[:, 0, knee] > 0).sum(axis=-1)
    assert np.ptp(widths) <= 1


def test_grid_cells_average_the_pixels_they_cover():
    maps = np.zeros((1, 2, 16, 16), np.float32)
    maps[0, :, :8, :4] = 0.5
    np.testing.assert_allclose(to_grid(maps, (2, 2))[0, 0], [[0.25, 0], [0, 0]])


def test_squares_of_a_cell_are_channels_of_their_own():
    maps = np.random.default_rng(0).random((3, 2, 16, 24)).astype(np.float32)
    fine = to_grid(maps, (2, 3), detail=4).numpy()
    assert fine.shape == (3, 32, 2, 3)
    for channel, row, column in ((0, 0, 0), (0, 3, 1), (1, 2, 3)):
        squares = maps[:, channel].reshape(3, 2, 4, 2, 3, 4, 2).mean(axis=(3, 6))
        np.testing.assert_allclose(
            fine[:, 16 * channel + 4 * row + column], squares[:, :, row, :, column], rtol=1e-5
        )


@pytest.mark.parametrize("detail", [1, 2, 4])
def test_maps_of_a_grid_have_that_very_grid(detail):
    grid = np.random.default_rng(0).random((3, 2 * detail**2, 5, 4)).astype(np.float32)
    maps = from_grid(grid, 8, detail)
    assert maps.shape == (3, 2, 40, 32)
    np.testing.assert_allclose(to_grid(maps, (5, 4), detail=detail), grid, atol=1e-6)
