"""What the tests of the service share."""

import json

import numpy as np
import pytest
from PIL import Image

from dreampose.poses import Motion

NUM_FRAMES, FPS = 10, 12.5


@pytest.fixture(scope="session")
def bare_model(tiny_recipe, tmp_path_factory):
    """What can be told of a model without its weights: a folder with the recipe alone."""
    folder = tmp_path_factory.mktemp("bare") / "tiny"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"recipe": tiny_recipe.to_dict()}))
    return folder


def walking_square(num_frames=NUM_FRAMES, height=64, width=48, fps=FPS):
    """A motion without a person: a square that moves to the right."""
    maps = np.zeros((num_frames, 2, height, width), np.float32)
    for index in range(num_frames):
        maps[index, :, height // 4 : -height // 4, index : index + width // 3] = 0.5
    return Motion(
        maps=maps,
        joints=np.zeros((num_frames, 3, 4), np.float32),
        confidence=np.ones(num_frames, np.float32),
        fps=fps,
    )


@pytest.fixture
def motion_file(tmp_path):
    """A motion of ten frames at 12.5 frames per second."""
    walking_square().save(tmp_path / "motion.npz")
    return tmp_path / "motion.npz"


@pytest.fixture
def photo_file(tmp_path):
    """A picture of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"
