"""Encoding of training data with DensePose and from photo sets."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dreampose.config import replace
from dreampose.data import ARRAYS
from dreampose.io import video
from jobs.common.encoding import Encoder, Settings


class Everywhere(nn.Module):
    """One person, as large as the picture, of part 1; U is how red the first pixel is."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        count = int(image[0, 0, 0] < 200)
        box = torch.tensor([[0.0, 0.0, float(image.shape[2]), float(image.shape[1])]])
        coarse, fine = torch.zeros(count, 2, 8, 8), torch.zeros(count, 25, 8, 8)
        coarse[:, 1], fine[:, 1] = 1.0, 1.0
        u = torch.full((count, 25, 8, 8), float(image[0, 0, 0]) / 255)
        return box[:count], coarse, fine, u, torch.full((count, 25, 8, 8), 0.5)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "densepose.torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Everywhere()).save(str(path))
    return path


def row_of(settings, path):
    return Encoder(settings, 1)._row(clip_id="c", path=str(path), subject="s", row_file="")


def array(row, name):
    return np.frombuffer(row[name], ARRAYS[name]).reshape(row[f"{name}_shape"])


@pytest.mark.parametrize("channels", [2, 3])
def test_poses_of_a_densepose_model_fill_the_rows(channels, model, tiny_recipe, tmp_path):
    frames = np.zeros((6, 64, 48, 3), np.uint8)
    frames[:] = (np.arange(6) * 20 + 20)[:, None, None, None]
    video.write(tmp_path / "clip.mp4", frames, fps=10)
    recipe = replace(tiny_recipe, pose_channels=channels)
    settings = Settings(recipe=recipe, pose=f"densepose:{model}", seed=0)
    row = row_of(settings, tmp_path / "clip.mp4")
    assert (row["error"], row["estimator"]) == (None, "densepose")
    maps = array(row, "poses")[0]
    assert maps.shape == (6, channels, 8, 6)
    np.testing.assert_allclose(maps[:, -2, 4, 3], (np.arange(6) * 20 + 20) / 255, atol=0.02)
    if channels == 3:
        np.testing.assert_allclose(maps[:, 0], 1 / 24, atol=0.003)

    # The same weights elsewhere are the same settings; other channels are not.
    shutil.copy(model, tmp_path / "moved.torchscript")
    moved = replace(settings, pose=f"densepose:{tmp_path / 'moved.torchscript'}")
    assert moved.to_json() == settings.to_json()
    other = replace(settings, recipe=replace(recipe, pose_channels=5 - channels))
    assert other.to_json() != settings.to_json()


def test_a_set_of_photos_is_a_row_of_the_photos_with_a_person(model, tiny_recipe, tmp_path):
    names = []
    for level in (40, 250, 120):
        names.append(tmp_path / f"{level}.png")
        Image.fromarray(np.full((90, 60, 3), level, np.uint8)).save(names[-1])
    settings = Settings(recipe=tiny_recipe, pose=f"densepose:{model}", seed=0)
    row = row_of(settings, ";".join(map(str, names)))
    assert (row["error"], row["num_frames"], row["fps"]) == (None, 2, 0)
    assert row["path"] == ";".join(map(str, names))
    levels = array(row, "poses")[0, :, 0, 4, 3]
    np.testing.assert_allclose(levels, (40 / 255, 120 / 255), atol=0.02)
    names[0].unlink()
    row = row_of(settings, ";".join(map(str, names)))
    assert "photo: no such file" in row["error"] and row["frames"] is None
