"""Pose accuracy of rendered people."""

import numpy as np
from jaxtyping import Bool, Float


def pck(
    pred: Float[np.ndarray, "t k 2"],
    truth: Float[np.ndarray, "t k 2"],
    reference: Float[np.ndarray, " t"],
    *,
    visible: Bool[np.ndarray, "t k"],
    threshold: float = 0.2,
) -> float:
    """Proportion of correct keypoints (PCK): error of at most `threshold` times a body length.

    Range: 0 to 1 (best). Resolution: any; x, y and `reference` have the same unit. Backbone: none.
    Source: Yang and Ramanan 2013, with the torso as reference (PCK@0.2 in the LSP tables).

    Args:
        pred: x, y of the predicted keypoints.
        truth: x, y of the true keypoints.
        reference: body length in each frame, positive.
        visible: mask of the keypoints that count, at least one.
        threshold: largest error of a correct keypoint, as a fraction of `reference`.
    """
    assert visible.any(), "no visible keypoint"
    distance = np.linalg.norm(pred.astype(np.float64) - truth, axis=-1)
    return float((distance <= threshold * reference[:, None])[visible].mean())
