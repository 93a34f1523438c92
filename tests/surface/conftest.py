"""A walking person's points."""

import numpy as np
import pytest

from dreampose import synthetic
from dreampose.synthetic.identity import identity


@pytest.fixture(scope="session")
def walker():
    """Joints (t 33 4) of three frames of a synthetic walk, in pixels of 160x128."""
    clip = synthetic.render_clip(
        identity(5, "train"), motion="walk", num_frames=3, height=160, width=128
    )
    places = clip.joints + np.array([0.5, 0.5, 0], np.float32)
    return np.concatenate([places, np.ones((3, 33, 1), np.float32)], -1)
