"""Comparison of training options."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import explore
from dreampose import checkpoints, recipes
from dreampose.config import Recipe
from dreampose.diffusion.schedulers import noise_process
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.vae import LatentCodec
from dreampose.training.base_stage import encoders_fingerprint
from dreampose.types import Clip


@pytest.mark.parametrize("name", list(explore.CHOICES))
def test_each_option_changes_one_setting_of_the_recipe(name):
    own = recipes.catwalk()
    changed = explore.CHOICES[name].of(own)
    assert Recipe.from_dict(changed.to_dict()) == changed
    noise_process(changed.scheduler)
    assert changed.image_encoder["image_size"] % changed.image_encoder["patch_size"] == 0
    fields = {"base_stage", "vae_stage", "scheduler", "image_encoder"}
    facts = own.to_dict()
    different = {key for key, value in changed.to_dict().items() if value != facts[key]}
    # `tokens-8x8` equals the recipe, with an image encoder that starts from random weights.
    plain = name in ("unchanged", "tokens-8x8", "decoder")
    assert len(different) == (0 if plain else 1)
    assert different <= fields


@pytest.fixture
def starts(tiny_pipeline, tmp_path, monkeypatch):
    """Creates the initial model of an option and records the training commands."""
    commands = []

    def begin(command, check):
        commands.append(command)
        return SimpleNamespace(returncode=len(commands) > 3)

    monkeypatch.setattr(subprocess, "run", begin)

    def make(name, seed):
        folder = tmp_path / f"{name}-{seed}"
        choice = explore.CHOICES[name]
        explore.train(folder, tiny_pipeline, choice, "data", steps=7, seed=seed)
        return checkpoints.load(folder / "start")

    return SimpleNamespace(make=make, commands=commands)


def test_all_options_start_from_the_same_weights(starts, tiny_pipeline):
    plain, epsilon, other = (
        starts.make(*run) for run in (("unchanged", 0), ("epsilon", 0), ("unchanged", 1))
    )
    assert epsilon.scheduler.config["prediction_type"] == "epsilon"
    for pipe in (plain, epsilon, other):
        assert encoders_fingerprint(pipe) == encoders_fingerprint(tiny_pipeline)
    weights = [pipe.unet.conv_in.weight for pipe in (plain, epsilon, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], tiny_pipeline.unet.conv_in.weight)
    for command in starts.commands:
        assert command[command.index("--steps") + 1] == "7"
        assert command[command.index("--stage") + 1] == "base"
    with pytest.raises(InputError, match="training of 'unchanged-0' failed"):
        starts.make("unchanged", 0)


def test_table_shows_mean_minimum_and_maximum_over_seeds():
    scores = [
        {"l1 / copy": 0.5 + 0.1 * seed, **dict.fromkeys(explore.SCORES, 0.25)} for seed in (0, 1)
    ]
    head, _, one, two = explore.table({"one": scores[:1], "two": scores})
    assert head == "| choice | l1 / copy | l1 | ssim | lpips-lite |"
    assert one == "| one | 0.5000 | 0.2500 | 0.2500 | 0.2500 |"
    assert two.startswith("| two | 0.5500 [0.5000, 0.6000] | 0.2500 [0.2500, 0.2500] |")


def test_decoders_are_scored_by_reconstructions(tiny_pipeline, tmp_path, monkeypatch):
    def no_render(*args):
        raise AssertionError("nothing is rendered")

    monkeypatch.setattr(explore.people, "render", no_render)
    checkpoints.save(tiny_pipeline, tmp_path / "decoder" / "run" / "model", dtype=None)
    frames = np.random.default_rng(0).integers(0, 256, (48, 64, 48, 3), dtype=np.uint8)
    clip = Clip(frames=frames, fps=12.0, source="")
    monkeypatch.setattr(explore.video, "read", lambda path: clip)
    choice = explore.CHOICES["decoder-pixels"]
    scores = explore.score(tmp_path / "decoder", choice, tmp_path, 1, "fast")
    truth = frames[list(explore.people.SCORED)]
    codec = LatentCodec(vae=tiny_pipeline.vae)
    with torch.no_grad():
        decoded = video.to_pixels(codec.decode(codec.encode(video.to_model(truth))))
    error = np.abs(decoded / 255.0 - truth / 255.0).mean()
    assert scores["l1"] == pytest.approx(error, rel=1e-4)
    copied = np.abs(frames[:1] / 255.0 - truth / 255.0).mean()
    assert scores["l1 / copy"] == pytest.approx(error / copied, rel=1e-4)
