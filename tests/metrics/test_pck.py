"""Proportion of correct keypoints."""

import numpy as np
import pytest

from dreampose.metrics.pck import pck


def test_keypoints_within_the_threshold_are_correct():
    truth = np.zeros((2, 3, 2))
    pred = truth.copy()
    pred[0, 0] = (10.0, 0.0)  # at 0.2 torsos: correct
    pred[0, 1] = (6.1, 8.0)  # just beyond
    pred[1, 2] = (0.0, 30.0)
    seen = np.ones((2, 3), bool)
    torso = np.array([50.0, 100.0])
    assert pck(pred, truth, torso, visible=seen) == pytest.approx(4 / 6)
    assert pck(pred, truth, torso, visible=seen, threshold=0.3) == pytest.approx(1.0)


def test_invisible_keypoints_do_not_count():
    truth = np.zeros((1, 2, 2))
    pred = np.array([[[100.0, 0.0], [0.0, 0.0]]])
    torso = np.ones(1)
    assert pck(pred, truth, torso, visible=np.array([[False, True]])) == 1.0
    assert pck(pred, truth, torso, visible=np.array([[True, True]])) == 0.5
