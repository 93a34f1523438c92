"""Finetuning on one person."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import PNDMScheduler
from safetensors.torch import load_file

from dreampose import checkpoints, convert, training
from dreampose.config import replace
from dreampose.errors import InputError
from dreampose.models import lora
from dreampose.poses import Motion
from dreampose.recipes import catwalk
from dreampose.training import photo_crops, subject


def one_frame(motion: Motion, index: int) -> Motion:
    return motion.between(index, index + 1)


@pytest.fixture
def finetune(drawn):
    """Finetunes on frames of one drawn clip, and returns the reports."""
    return functools.partial(run, *drawn(7))


def run(clip, motion, pipe, out, *, stop_after=None, photos=(0, 3), **options):
    reports = []
    for report in training.finetune_subject(
        pipe,
        [clip.frames[index] for index in photos],
        out,
        name="ada",
        accelerator=Accelerator(cpu=True),
        motions=[one_frame(motion, index) for index in photos],
        stop=lambda: stop_after is not None and len(reports) + 1 >= stop_after,
        **{"num_steps": 3, "num_vae_steps": 3, **options},
    ):
        reports.append(report)
    return reports


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name}/{key}": value
        for file in sorted(folder.glob("*/*.safetensors"))
        for key, value in load_file(file).items()
    }


@pytest.mark.parametrize("stop_after", [2, 4])
def test_stopped_finetuning_ends_with_the_same_weights(
    tiny_pipeline, finetune, tmp_path, stop_after
) -> None:
    before = checkpoints.fingerprint(tiny_pipeline)
    whole = finetune(tiny_pipeline, tmp_path / "whole")
    first = finetune(tiny_pipeline, tmp_path / "parts", stop_after=stop_after)
    assert first[-1].stopped
    assert not (tmp_path / "parts").exists()
    second = finetune(tiny_pipeline, tmp_path / "parts")
    assert [report.stage for report in whole] == ["unet"] * 3 + ["decoder"] * 3
    assert [report.step for report in whole] == [1, 2, 3, 4, 5, 6]
    assert [report.loss for report in first + second] == [report.loss for report in whole]
    expected, got = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert expected.keys() == got.keys()
    assert all((expected[key] == got[key]).all() for key in expected)

    assert checkpoints.fingerprint(tiny_pipeline) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
    assert finetune(tiny_pipeline, tmp_path / "parts") == []
    tiny_pipeline.load_subject(tmp_path / "parts")
    assert checkpoints.fingerprint(tiny_pipeline) != before


def test_only_unet_adapter_and_decoder_change(tiny_pipeline, finetune, tmp_path) -> None:
    base = {
        component: {key: value.clone() for key, value in module.state_dict().items()}
        for component in ("vae", "image_encoder", "unet", "adapter")
        for module in [getattr(tiny_pipeline, component)]
    }
    finetune(tiny_pipeline, tmp_path / "ada")
    tiny_pipeline.load_subject(tmp_path / "ada")
    changed = {
        f"{component}.{key}".split(".")[0 if component != "vae" else 1]
        for component, state in base.items()
        for key, value in getattr(tiny_pipeline, component).state_dict().items()
        if not torch.equal(value, state[key])
    }
    assert changed == {"unet", "adapter", "decoder"}


def test_the_photo_is_never_the_targets_own_view(tiny_pipeline, drawn) -> None:
    clip, motion = drawn(7)
    recipe = tiny_pipeline.recipe
    encoded = photo_crops.encode_crops(
        tiny_pipeline,
        [clip.frames[0]],
        photo_crops.photo_windows([clip.frames[0]], recipe, [one_frame(motion, 0)]),
        seed=0,
    )
    # Each view gets a number, since two crops of so small a photo may be equal.
    numbers = torch.arange(encoded.num_views).float()[None, :, None, None, None]
    encoded = dataclasses.replace(encoded, latents=numbers.expand_as(encoded.latents))
    config = replace(recipe.subject_stage, crop_share=0.5)
    facts = checkpoints.describe_subject(tiny_pipeline, "ada", [clip.frames[0]])
    stage = subject.SubjectStage(tiny_pipeline, encoded, config=config, subject=facts)
    batch = stage.draw("train", np.zeros(200, int), np.random.default_rng(0))
    assert not (batch["latents"] == batch["photo_latents"]).flatten(1).all(1).any()
    whole = (batch["latents"] == 0).flatten(1).all(1).float().mean()
    assert 0.4 < whole < 0.7
    # One photo: its pose fills the window.
    assert (batch["poses"] == batch["poses"][:, :1]).all()


def test_finetuning_takes_the_recipes_offset_noise(tiny_pipeline, drawn, monkeypatch) -> None:
    clip, motion = drawn(7)
    recipe = tiny_pipeline.recipe
    windows = photo_crops.photo_windows([clip.frames[0]], recipe, [one_frame(motion, 0)])
    encoded = photo_crops.encode_crops(tiny_pipeline, [clip.frames[0]], windows, seed=0)
    facts = checkpoints.describe_subject(tiny_pipeline, "ada", [clip.frames[0]])
    noise = []
    add_noise = PNDMScheduler.add_noise
    monkeypatch.setattr(
        PNDMScheduler, "add_noise", lambda *args: noise.append(args[2]) or add_noise(*args)
    )
    for deviation in (0.0, 0.5):
        config = replace(recipe.subject_stage, offset_noise=deviation)
        stage = subject.SubjectStage(tiny_pipeline, encoded, config=config, subject=facts)
        stage(stage.draw("train", np.zeros(2, int), np.random.default_rng(0)))
    added = noise[1] - noise[0]
    torch.testing.assert_close(added, added.mean(dim=(2, 3), keepdim=True).expand_as(added))
    assert added.abs().min() > 0


def test_an_existing_folder_of_another_subject_is_rejected(
    tiny_pipeline, finetune, tmp_path
) -> None:
    finetune(tiny_pipeline, tmp_path / "ada", num_vae_steps=0)
    assert not (tmp_path / "ada" / "vae").exists()
    with pytest.raises(InputError, match="out must be new or contain the same subject"):
        finetune(tiny_pipeline, tmp_path / "ada", photos=(1,))


def test_a_clip_of_the_subject_brings_its_own_windows(drawn) -> None:
    clip, motion = drawn(7)
    frames, around = photo_crops.clip_windows(clip, motion, catwalk())
    assert len(frames) == len(around) == 5
    assert (around[0] == motion.maps[[0, 0, 0, 1, 2]]).all()
    assert (around[4] == motion.maps[[2, 3, 4, 4, 4]]).all()


class TestLora:
    def test_stopped_finetuning_ends_with_the_same_updates(
        self, tiny_pipeline, finetune, tmp_path
    ) -> None:
        before = checkpoints.fingerprint(tiny_pipeline)
        options = {"method": "lora", "lora_rank": 2}
        whole = finetune(tiny_pipeline, tmp_path / "whole", **options)
        first = finetune(tiny_pipeline, tmp_path / "parts", stop_after=2, **options)
        with pytest.raises(InputError, match="same stage, recipe and seed"):
            finetune(tiny_pipeline, tmp_path / "parts", method="lora", lora_rank=1)
        second = finetune(tiny_pipeline, tmp_path / "parts", **options)
        assert [report.stage for report in whole] == ["unet"] * 3 + ["decoder"] * 3
        assert [report.loss for report in first + second] == [report.loss for report in whole]
        files = [tmp_path / name / lora.FILE for name in ("whole", "parts")]
        expected, got = map(load_file, files)
        assert expected.keys() == got.keys()
        assert all((expected[key] == got[key]).all() for key in expected)
        assert all(value.abs().max() > 0 for value in expected.values()), "B was trained"
        assert checkpoints.fingerprint(tiny_pipeline) == before, "the base is left untouched"
        assert (tmp_path / "whole" / "vae").exists()

    def test_a_subject_holds_updates_alone(self, tiny_pipeline, finetune, tmp_path) -> None:
        reports = finetune(
            tiny_pipeline, tmp_path / "ada", method="lora", num_vae_steps=None, num_steps=2
        )
        assert [report.stage for report in reports] == ["unet"] * 2
        assert sorted(path.name for path in (tmp_path / "ada").iterdir()) == [
            lora.FILE,
            "subject.json",
        ]
        assert reports[0].lr == tiny_pipeline.recipe.lora_learning_rate
        before = checkpoints.fingerprint(tiny_pipeline)
        tiny_pipeline.load_subject(tmp_path / "ada")
        assert tiny_pipeline.subject.rank == tiny_pipeline.recipe.lora_rank
        tiny_pipeline.unload_subject()
        assert checkpoints.fingerprint(tiny_pipeline) == before

    def test_invalid_input_is_rejected_before_the_work(
        self, tiny_pipeline, finetune, tmp_path
    ) -> None:
        for options, said in (
            ({"method": "half"}, "method must be one of full, lora, got 'half'"),
            ({"method": "lora", "lora_rank": 0}, "rank must be at least 1, got 0"),
            ({"method": "lora", "lora_targets": ["to_z"]}, "got 'to_z'"),
        ):
            with pytest.raises(InputError, match=said):
                finetune(tiny_pipeline, tmp_path / "ada", **options)
        assert not [*tmp_path.iterdir()]

    def test_imported_weights_are_finetuned_in_their_own_ranges(
        self, sd_folder, drawn, tmp_path
    ) -> None:
        """Stable Diffusion's kind of VAE, [0, 1] pixels, and a black photo as the null image."""
        pipe, _ = convert.import_model(sd_folder, height=80, width=64)
        recipe = replace(
            pipe.recipe,
            **convert.PUBLISHED,
            image_dropout=1.0, pose_dropout=0.0, both_dropout=0.0,
            subject_stage=replace(pipe.recipe.subject_stage, batch_size=2),
        )  # fmt: skip
        pipe.register_to_config(recipe=recipe.to_dict())
        before = checkpoints.fingerprint(pipe)
        clip, motion = drawn(7, 80, 64)
        reports = run(
            clip, motion, pipe, tmp_path / "ada", method="lora", num_steps=2, num_vae_steps=1
        )
        assert all(np.isfinite(report.loss) for report in reports)
        pipe.load_subject(tmp_path / "ada")
        assert {"unet", "adapter"} <= {
            key.split(".")[0] for key in load_file(tmp_path / "ada" / lora.FILE)
        }
        # Every photo was dropped: what taught the adapter is the black photo.
        assert lora.read(tmp_path / "ada" / lora.FILE)["adapter"].tensors["mix.lora_B.weight"].any()
        pipe.unload_subject()
        assert checkpoints.fingerprint(pipe) == before
