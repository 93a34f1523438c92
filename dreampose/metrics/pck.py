"""Whether a rendered person takes the pose asked for. Knows nothing of estimators or pixels."""

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
    """Percentage of correct keypoints, PCK: those within a share of a body measure of their place.

    Range: 0 to 1 (all are). Resolution: any; x, y and `reference` in the same unit. Backbone: none.
    Source: Yang and Ramanan 2013, with the torso as the measure (PCK@0.2 of the LSP tables).

    Args:
        pred: x, y of the points found.
        truth: x, y where they should be.
        reference: the body measure in each frame, above 0.
        visible: the points that count; at least one must.
        threshold: share of `reference` up to which, inclusive, a point is correct.
    """
    assert visible.any(), "no point counts"
    distance = np.linalg.norm(pred.astype(np.float64) - truth, axis=-1)
    return float((distance <= threshold * reference[:, None])[visible].mean())
