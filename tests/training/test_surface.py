"""Finetuning and training with a surface condition."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dreampose import checkpoints, poses, synthetic, training
from dreampose.config import replace
from dreampose.synthetic.identity import identity
from dreampose.training import surface_data, surface_stage
from dreampose.training.photo_crops import encode_crops, photo_warps, photo_windows
from dreampose.types import Clip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two frames of a turn, and their exact poses."""
    clip = synthetic.render_clip(
        identity(5, "train"), motion="turn", num_frames=12, height=64, width=48
    )
    path = synthetic.write_clip(clip, tmp_path_factory.mktemp("turn"), "turn")
    read = Clip(frames=clip.frames, fps=clip.fps, source=str(path))
    motion = poses.extract(read, poses.estimator("catwalk"), height=64, width=48)
    return [clip.frames[0], clip.frames[2]], [motion.between(0, 1), motion.between(2, 3)]


@pytest.fixture
def pipe(tiny_recipe):
    torch.manual_seed(0)
    return checkpoints.build(replace(tiny_recipe, surface_detail=2, refiner={"width": 8}))


def test_a_photo_is_filled_from_the_others(photos):
    pictures, motions = photos
    black = np.zeros_like(pictures[0])
    first, second = photo_warps([black, pictures[1]], motions)
    assert first[:3].max() > 100, "from the second photo"
    assert second[:3].max() == 0, "from the first, which is black"
    (alone,) = photo_warps(pictures[:1], motions[:1])
    body = alone[4] > 0
    shown = np.moveaxis(alone[:3], 0, -1).astype(int)
    assert np.abs(shown - pictures[0])[body & (alone[3] > 200)].mean() < 2


def test_crops_carry_the_condition_of_their_own_view(pipe, photos):
    pictures, motions = photos
    warps = photo_warps(pictures, motions)
    around = photo_windows(pictures, pipe.recipe, motions)
    views = encode_crops(pipe, pictures, around, seed=0, warps=warps)
    assert views.surface.shape[:3] == (2, views.num_views, pipe.recipe.surface_channels)
    assert not torch.equal(views.surface[0, 0], views.surface[1, 0])
    assert not torch.equal(views.surface[0, 0], views.surface[0, 1])
    confidence = views.surface[:, :, pipe.recipe.latent_channels :]
    assert confidence.min() >= 0
    assert confidence.max() <= 1
    assert encode_crops(pipe, pictures, around, seed=0).surface is None


def test_finetuning_trains_the_kernels_of_the_condition(pipe, photos, tmp_path):
    pictures, motions = photos
    with torch.no_grad():
        pipe.unet.conv_in.weight[:, -4:] = 0.1
    steps = list(
        training.finetune_subject(
            pipe, pictures, tmp_path / "anna", name="anna", motions=motions,
            accelerator=Accelerator(cpu=True), num_steps=3, num_vae_steps=0,
        )
    )  # fmt: skip
    assert len(steps) == 3
    tuned = pipe.with_subject(tmp_path / "anna")
    channels = pipe.recipe.surface_channels
    change = tuned.unet.conv_in.weight - pipe.unet.conv_in.weight
    assert change[:, -channels:].abs().max() > 0
    assert tuned.refiner is pipe.refiner


@pytest.mark.slow
def test_condition_and_refiner_learn_and_resume(tmp_path):
    folder = tmp_path / "people"
    list(surface_data.render(folder, "train", [7], height=320, width=256))
    pipe = checkpoints.load("models/catwalk")

    def lines(minutes, count):
        trainer = surface_stage.Trainer(
            checkpoints.load("models/catwalk"), rate=1e-4, refiner_rate=1e-3
        )
        found = []
        for line in surface_stage.run(
            trainer, folder, folder, tmp_path / "run", minutes=minutes, batch_size=2,
            checkpoint_every=count,
        ):  # fmt: skip
            found.append(line)
        return trainer, found

    first, found = lines(0.02, 1)
    assert "refined" in found[-1]
    again, _ = lines(0.04, 1)
    assert again.step > first.step
    done = surface_stage.finished(again, pipe)
    assert done.recipe.surface_detail == surface_stage.DETAIL
    channels = done.recipe.surface_channels
    assert done.unet.conv_in.weight[:, -channels:].abs().max() > 0
