"""BlazePose's 33 landmarks and body lengths.

Coordinates are in pixels: x to the right, y down, depth away from the camera with 0 at the middle
of the hips. "left" is the left of the person.
"""

import numpy as np
from jaxtyping import Float

NAMES = (
    "nose",
    *(
        f"{side}_eye_{place}"
        for side in ("left", "right")
        for place in ("inner", "middle", "outer")
    ),
    *("left_ear", "right_ear", "mouth_left", "mouth_right"),
    *(
        f"{side}_{place}"
        for place in (
            *("shoulder", "elbow", "wrist", "pinky", "index", "thumb"),
            *("hip", "knee", "ankle", "heel", "foot"),
        )
        for side in ("left", "right")
    ),
)
"""Names of the landmarks in the order of the network."""

INDEX = {name: index for index, name in enumerate(NAMES)}

BONES = tuple(
    (INDEX[a], INDEX[b])
    for a, b in (
        ("left_shoulder", "right_shoulder"),
        ("left_hip", "right_hip"),
        *(
            (f"{side}_{a}", f"{side}_{b}")
            for side in ("left", "right")
            for a, b in (
                ("shoulder", "elbow"),
                ("elbow", "wrist"),
                ("shoulder", "hip"),
                ("hip", "knee"),
                ("knee", "ankle"),
                ("ankle", "foot"),
            )
        ),
    )
)
"""Pairs of landmarks that previews connect by a line."""

ABSENT = -1.0
"""Visibility of landmarks that were occluded for too long and are left out of the maps."""

_HEIGHT_PER_CHAIN = 1.17
"""Standing height divided by the ear-to-ankle length along the body, measured on people."""


def point(joints: Float[np.ndarray, "*t k 4"], name: str) -> Float[np.ndarray, "*t 3"]:
    """Position of a landmark by name; `middle_X` is the midpoint of the left and right X."""
    if name.startswith("middle_"):
        name = name.removeprefix("middle_")
        return (point(joints, f"left_{name}") + point(joints, f"right_{name}")) / 2
    return joints[..., INDEX[name], :3]


def body_height(joints: Float[np.ndarray, "t k 4"]) -> Float[np.ndarray, " t"]:
    """Standing height in pixels, independent of the pose.

    Sum of the 3D bone lengths along the body (ear, shoulder, hip, knee, ankle), so a bent or
    striding person is as tall as a standing one.
    """

    def length(a: str, b: str) -> Float[np.ndarray, " t"]:
        return np.linalg.norm(point(joints, a) - point(joints, b), axis=-1)

    legs = [
        length(f"{side}_hip", f"{side}_knee") + length(f"{side}_knee", f"{side}_ankle")
        for side in ("left", "right")
    ]
    neck = length("middle_ear", "middle_shoulder")
    trunk = length("middle_shoulder", "middle_hip")
    return _HEIGHT_PER_CHAIN * (neck + trunk + (legs[0] + legs[1]) / 2)


def steady(values: Float[np.ndarray, " t"], radius: int) -> Float[np.ndarray, " t"]:
    """Running median, then running mean, over `2 * radius + 1` values; the ends are repeated."""
    for reduce in (np.median, np.mean):
        padded = np.pad(values, radius, mode="edge")
        values = reduce(np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1), axis=-1)
    return values
