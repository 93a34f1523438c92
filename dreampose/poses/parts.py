"""DensePose's 24 body parts, and pose maps from them.

Numbers and UV charts of the parts are those of DensePose-COCO (Güler et al., arXiv 1802.00434); 0
is background. "left" is the left of the person.
"""

import cv2
import numpy as np
from jaxtyping import Float, UInt8

NAMES = (
    *("torso_back", "torso_front", "right_hand", "left_hand", "left_foot", "right_foot"),
    *("right_thigh_back", "left_thigh_back", "right_thigh_front", "left_thigh_front"),
    *("right_shin_back", "left_shin_back", "right_shin_front", "left_shin_front"),
    *("left_upper_arm_inside", "right_upper_arm_inside"),
    *("left_upper_arm_outside", "right_upper_arm_outside"),
    *("left_forearm_inside", "right_forearm_inside"),
    *("left_forearm_outside", "right_forearm_outside"),
    *("head_right", "head_left"),
)
"""Names of the parts 1 to 24."""

NUM_PARTS = len(NAMES)

SMALLEST = 1 / 255
"""Minimum value of a map on the person, which distinguishes it from the background."""

_SURE = 48.0
"""Largest distance of a pixel to the colour of its part, in 8-bit levels."""
_CLEANING = 5
"""Side in pixels of the majority filter that removes compression noise."""


def to_maps(
    labels: UInt8[np.ndarray, "t H W"], uv: Float[np.ndarray, "t 2 H W"], channels: int = 2
) -> Float[np.ndarray, "t u H W"]:
    """Converts parts and UV of one person to pose maps.

    Args:
        labels: part of each pixel, 0 to 24.
        uv: U and V on the part; clipped to [1/255, 1] on the person, ignored elsewhere.
        channels: 2 for U and V as in the paper's code; 3 for part / 24, U and V.
    """
    assert channels in (2, 3)
    person = (labels > 0)[:, None]
    maps = np.where(person, np.clip(uv, SMALLEST, 1), 0).astype(np.float32)
    if channels == 2:
        return maps
    return np.concatenate([labels[:, None].astype(np.float32) / NUM_PARTS, maps], axis=1)


def middles(labels: UInt8[np.ndarray, "H W"]) -> Float[np.ndarray, "24 4"]:
    """Centroids of the parts: x and y in pixels, depth 0, and 1 if the part is visible, else 0."""
    rows, columns = np.nonzero(labels)
    seen = labels[rows, columns]
    counts = np.bincount(seen, minlength=NUM_PARTS + 1)[1:]
    sums = [
        np.bincount(seen, weights=places + 0.5, minlength=NUM_PARTS + 1)[1:]
        for places in (columns, rows)
    ]
    x, y = (values / np.maximum(counts, 1) for values in sums)
    return np.stack([x, y, np.zeros_like(x), counts > 0], axis=-1).astype(np.float32)


def palette() -> UInt8[np.ndarray, "25 3"]:
    """RGB colours of background and parts in MagicAnimate's pose videos: viridis over 0 to 24."""
    levels = (np.arange(NUM_PARTS + 1) * 255 / NUM_PARTS).astype(np.uint8)
    return np.ascontiguousarray(
        cv2.applyColorMap(levels[:, None], cv2.COLORMAP_VIRIDIS)[:, 0, ::-1]
    )


def from_colours(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Decodes the parts of a compressed frame that is coloured with `palette`.

    Each pixel gets the part of the nearest colour. A majority filter then corrects the edges, where
    mixed colours can look like other parts.
    """
    colours = palette().astype(np.float32)
    # Look up each distinct colour once.
    codes = picture.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found, inverse = np.unique(codes, return_inverse=True)
    values = np.stack([found >> 16, (found >> 8) & 255, found & 255], axis=-1).astype(np.float32)
    distances = np.linalg.norm(values[:, None] - colours, axis=-1)
    nearest = np.where(distances.min(axis=1) <= _SURE, distances.argmin(axis=1), 0)
    labels = nearest[inverse].reshape(codes.shape).astype(np.uint8)
    votes = np.full(labels.shape, -1.0, np.float32)
    cleaned = np.zeros_like(labels)
    for label in np.unique(labels).tolist():
        count = cv2.blur((labels == label).astype(np.float32), (_CLEANING, _CLEANING))
        wins = count > votes
        cleaned[wins], votes[wins] = label, count[wins]
    return cleaned
