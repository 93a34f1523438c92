"""A standing skeleton, and rendered people with exact joints."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import Float

from dreampose.io import video
from dreampose.poses import landmarks
from dreampose.synthetic.clip import render_clip, write_clip
from dreampose.synthetic.identity import identity
from dreampose.types import Clip

Skeleton = Callable[..., Float[np.ndarray, "t 33 4"]]

# Seen from the front, in body heights: x to the picture's right (the person's left), y down from
# the hips, z away from the camera. Rounded from anthropometric tables.
STANDING = {
    "nose": (0.0, -0.40, -0.06),
    "left_ear": (0.045, -0.41, 0.0),
    "left_eye_inner": (0.01, -0.43, -0.05),
    "left_eye_middle": (0.02, -0.43, -0.05),
    "left_eye_outer": (0.03, -0.43, -0.05),
    "mouth_left": (0.015, -0.38, -0.05),
    "left_shoulder": (0.10, -0.29, 0.0),
    "left_elbow": (0.13, -0.12, 0.0),
    "left_wrist": (0.14, 0.02, -0.02),
    "left_pinky": (0.14, 0.07, -0.02),
    "left_index": (0.14, 0.08, -0.03),
    "left_thumb": (0.13, 0.05, -0.04),
    "left_hip": (0.055, 0.0, 0.0),
    "left_knee": (0.06, 0.24, 0.0),
    "left_ankle": (0.06, 0.48, 0.0),
    "left_heel": (0.06, 0.51, 0.02),
    "left_foot": (0.07, 0.51, -0.10),
}


@pytest.fixture
def skeleton() -> Skeleton:
    """Builds a standing person: `skeleton(yaw, height, x, hip_y, **moved points)`."""

    def build(
        yaw: float = 0.0, height: float = 128, x: float = 64, hip_y: float = 80, **moved: object
    ) -> Float[np.ndarray, "1 33 4"]:
        places = dict(STANDING)
        for name, place in STANDING.items():
            if "left" in name:
                places[name.replace("left", "right")] = (-place[0], place[1], place[2])
        places.update(moved)  # type: ignore[arg-type]
        points = np.array([places[name] for name in landmarks.NAMES]) * height
        cosine, sine = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
        joints = np.ones((1, 33, 4), np.float32)
        # A positive yaw turns the person to their own left, the picture's right.
        joints[0, :, 0] = points[:, 0] * cosine - points[:, 2] * sine + x
        joints[0, :, 1] = points[:, 1] + hip_y
        joints[0, :, 2] = points[:, 0] * sine + points[:, 2] * cosine
        return joints

    return build


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered person turning once around in eight frames, with the exact joints beside it."""
    clip = render_clip(
        identity(11, "test"), motion="turn", num_frames=8, height=160, width=128, fps=8
    )
    return write_clip(clip, tmp_path_factory.mktemp("rendered"), "turn")


@pytest.fixture(scope="session")
def turn(rendered: Path) -> Clip:
    """That clip, decoded."""
    return video.read(rendered)
