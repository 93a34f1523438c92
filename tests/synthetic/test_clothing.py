"""Skirt draping."""

import numpy as np
import pytest

from dreampose.synthetic import clothing, gait, scene
from dreampose.synthetic.identity import identity


@pytest.mark.parametrize("number", [3, 7])
def test_legs_stay_inside_the_skirt(number):
    dressed = scene.build(identity(number, "train"))
    cut = dressed.clothes.skirt
    assert cut is not None
    poses = gait.poses(
        dressed.person, motion="walk", num_frames=6, fps=5, arm_lift=30, stance=dressed.stance
    )
    for pose in poses:
        posed = scene.pose(dressed, pose)
        rings = posed.points[dressed.skirt_points].reshape(clothing.SKIRT_RINGS, -1, 3)
        legs = posed.points[dressed.under_skirt]
        # Each leg point must lie inside the polygon of the ring nearest in height.
        for middle, ring in zip(rings[6:-1].mean(1), rings[6:-1], strict=True):
            near = legs[np.abs(legs[:, 1] - middle[1]) < 0.08]
            outline = ring[:-1, [0, 2]]
            assert all(_inside(outline, place) for place in near[:, [0, 2]])


def _inside(outline, place):
    start, end = outline, np.roll(outline, -1, axis=0)
    crosses = (start[:, 1] > place[1]) != (end[:, 1] > place[1])
    slope = (place[1] - start[:, 1]) / np.where(crosses, end[:, 1] - start[:, 1], 1)
    return (crosses & (place[0] < start[:, 0] + slope * (end[:, 0] - start[:, 0]))).sum() % 2 == 1
