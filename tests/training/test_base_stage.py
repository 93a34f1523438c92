"""Base stage: samples, and a training step at the paper's layout."""

import functools

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import PNDMScheduler

from dreampose import checkpoints, recipes, training
from dreampose.config import replace
from dreampose.data import Dataset
from dreampose.errors import InputError
from dreampose.training import base_stage
from dreampose.types import Batch


@pytest.fixture
def stage(tiny_pipeline, tiny_recipe, tiny_data):
    data = Dataset(tiny_data, recipe=tiny_recipe, columns=base_stage.columns(tiny_recipe))
    checkpoint = checkpoints.build(tiny_recipe)
    return base_stage.BaseStage(
        checkpoint, data=data, validation=None, recipe=tiny_recipe, config=tiny_recipe.base_stage
    )


def test_target_and_poses_share_a_view_and_the_photo_is_another_frame(
    stage, tiny_data, tiny_recipe
):
    data = Dataset(tiny_data, recipe=tiny_recipe, columns=base_stage.columns(tiny_recipe))
    items = np.arange(len(data))
    batch = stage.draw("train", items, np.random.default_rng(0))
    for item, (clip, frame) in enumerate(data.targets.tolist()):
        latents = torch.from_numpy(data.array(clip, "latents")).float()
        matches = (latents == batch["latents"][item]).flatten(2).all(2).nonzero().tolist()
        assert [frame] == sorted({at for _, at in matches})
        maps = torch.from_numpy(data.array(clip, "poses")).float()
        num_frames = maps.shape[1]
        window = np.clip(np.arange(frame - 2, frame + 3), 0, num_frames - 1)
        assert any((maps[view, window] == batch["poses"][item]).all() for view, _ in matches)
        photo = (latents == batch["photo_latents"][item]).flatten(2).all(2).nonzero().tolist()
        assert photo
        assert all(at != frame for _, at in photo)


def test_tokens_learn_to_predict_the_content_of_their_patch(tiny_pipeline, tiny_recipe, tiny_data):
    def error_after(num_steps: int, weight: float) -> float:
        settings = replace(
            tiny_recipe.base_stage, reading_weight=weight, learning_rate=1e-2, batch_size=8
        )
        data = Dataset(tiny_data, recipe=tiny_recipe, columns=base_stage.columns(tiny_recipe))
        stage = base_stage.BaseStage(
            checkpoints.build(tiny_recipe),
            data=data,
            validation=None,
            recipe=tiny_recipe,
            config=settings,
        ).train()
        generator = np.random.default_rng(0)
        optimizer = torch.optim.Adam([p for p in stage.parameters() if p.requires_grad], 1e-2)
        for _ in range(num_steps):
            stage(stage.draw("train", np.arange(8), generator)).backward()
            optimizer.step()
            optimizer.zero_grad()
        batch = stage.draw("train", np.arange(8), np.random.default_rng(1))
        with torch.no_grad():
            both = stage(batch)
            alone = stage.eval()(batch)
        assert (stage.reader is None) == (not weight)
        return float(both - alone)

    # Read in training alone: the difference to validation is the reading, but for dropout.
    assert error_after(40, 1.0) < 0.5 * error_after(0, 1.0)
    assert abs(error_after(0, 0.0)) < 0.2


def test_cropped_photo_is_cropped_otherwise_than_the_target(tiny_recipe):
    recipe = replace(tiny_recipe, num_crops=4)
    settings = replace(recipe.base_stage, crop_share=1.0, recolour_share=0.0)
    target, photo = base_stage.sample_views(recipe, 1000, np.random.default_rng(0), config=settings)
    assert (target != photo).all()
    assert set(target.tolist()) == set(photo.tolist()) == {0, 1, 2, 3}


def test_recoloured_photo_has_the_targets_colours(tiny_recipe):
    recipe = replace(tiny_recipe, num_crops=2, num_recolours=3)
    settings = replace(recipe.base_stage, crop_share=0.0, recolour_share=1.0)
    target, photo = base_stage.sample_views(recipe, 300, np.random.default_rng(0), config=settings)
    assert (target == photo).all()
    assert set(target.tolist()) == {2, 3, 4}


def test_views_are_as_they_are_by_default(tiny_recipe):
    settings = replace(tiny_recipe.base_stage, crop_share=0.0, recolour_share=0.0)
    target, photo = base_stage.sample_views(
        tiny_recipe, 50, np.random.default_rng(0), config=settings
    )
    assert not target.any()
    assert not photo.any()


def test_latents_of_another_vae_are_rejected(tiny_recipe, tiny_data, tmp_path):
    other = checkpoints.build(tiny_recipe)
    other.vae.register_to_config(scaling_factor=2.0)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="data must be encoded by the model's own VAE"):
        next(
            training.train(
                "base",
                recipe=tiny_recipe,
                data=tiny_data,
                out=tmp_path / "out",
                accelerator=Accelerator(cpu=True),
                model=tmp_path / "other",
            )
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_poses", 3, "model must have num_poses 3 as in the recipe, got 5"),
        ("photo_latents", False, "model must have photo_latents false as in the recipe"),
    ],
)
def test_model_of_another_shape_is_rejected(
    field, value, expected, tiny_recipe, tiny_data, tiny_model, tmp_path
):
    recipe = replace(tiny_recipe, **{field: value})
    with pytest.raises(InputError, match=expected):
        next(
            training.train(
                "base",
                recipe=recipe,
                data=tiny_data,
                out=tmp_path / "out",
                accelerator=Accelerator(cpu=True),
                model=tiny_model,
            )
        )


def test_unknown_stage_is_rejected(tiny_recipe, tiny_data, tmp_path):
    with pytest.raises(InputError, match="stage must be one of vae, encoder, base, got 'bass'"):
        next(
            training.train(
                "bass",
                recipe=tiny_recipe,
                data=tiny_data,
                out=tmp_path,
                accelerator=Accelerator(cpu=True),
            )
        )


def test_the_papers_layout_with_a_tenth_of_the_channels_trains():
    recipe = replace(recipes.shrink(recipes.sd14(), 10), height=320, width=256)
    pipe = checkpoints.build(recipe)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    width = recipe.image_encoder["hidden_size"]
    batch = Batch(
        latents=draw(1, 4, 40, 32),
        poses=draw(1, 5, 2, 40, 32),
        photo_latents=draw(1, 4, 40, 32),
        tokens=draw(1, 50, width),
    )
    step = functools.partial(base_stage.denoising_step, pipe, batch, recipe=recipe, seed=0)
    before = step(dropout=False)
    before.backward()
    trained = [*pipe.unet.parameters(), *pipe.adapter.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    torch.optim.AdamW(trained, 1e-3).step()
    with torch.no_grad():
        after = step(dropout=False)
    assert before.item() == pytest.approx(1, abs=0.5)
    assert after.item() < before.item()


@pytest.mark.parametrize("deviation", [0.0, 0.5])
def test_offset_noise_shifts_whole_channels_and_is_part_of_the_target(
    stage, tiny_pipeline, tiny_recipe, monkeypatch, deviation
):
    """Of a denoiser that says nothing the loss is the target's mean square: that of the noise."""
    seen = []

    def keep(latents, noise, _):
        seen.append(noise)
        return latents

    monkeypatch.setattr(tiny_pipeline.scheduler, "add_noise", keep)
    monkeypatch.setattr(base_stage.schedulers, "training_target", lambda _, __, noise, ___: noise)
    monkeypatch.setattr(
        base_stage, "Denoiser", lambda unet: lambda noisy, *_: torch.zeros_like(noisy)
    )
    items = np.arange(16) % stage.num_items("train")
    batch = base_stage.make_batch(stage.draw("train", items, np.random.default_rng(0)))
    for offset in (0.0, deviation):
        loss = base_stage.denoising_step(
            tiny_pipeline, batch, recipe=tiny_recipe, seed=0, offset_noise=offset
        )
    assert loss.item() == pytest.approx(seen[1].square().mean().item(), rel=1e-5)
    added = seen[1] - seen[0]
    torch.testing.assert_close(added, added.mean(dim=(2, 3), keepdim=True).expand_as(added))
    assert added.mean(dim=(2, 3)).std().item() == pytest.approx(deviation, rel=0.3)


def test_offset_noise_is_used_in_training_only(tiny_recipe, tiny_data, monkeypatch):
    data = Dataset(tiny_data, recipe=tiny_recipe, columns=base_stage.columns(tiny_recipe))
    noise = []
    add_noise = PNDMScheduler.add_noise
    monkeypatch.setattr(
        PNDMScheduler, "add_noise", lambda *args: noise.append(args[2]) or add_noise(*args)
    )
    for deviation in (0.0, 0.5):
        stage = base_stage.BaseStage(
            checkpoints.build(tiny_recipe), data=data, validation=data, recipe=tiny_recipe,
            config=replace(tiny_recipe.base_stage, offset_noise=deviation),
        )  # fmt: skip
        batch = stage.draw("train", np.arange(2), np.random.default_rng(0))
        stage.train()(batch)
        stage.eval()(batch)
    plain, plain_held_out, offset, held_out = noise
    assert not torch.equal(plain, offset)
    torch.testing.assert_close(plain_held_out, held_out)


def test_finer_poses_train_and_coarser_data_is_rejected(
    tiny_recipe, tiny_data, write_clips, tmp_path
):
    fine = replace(tiny_recipe, pose_detail=4)
    checkpoints.save(checkpoints.build(fine), tmp_path / "start")
    train = functools.partial(
        training.train, "base", recipe=fine, out=tmp_path / "run", model=tmp_path / "start",
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    with pytest.raises(InputError, match=r"data must have 32 channels per pose .* got 2 of"):
        list(train(data=tiny_data))
    reports = list(train(data=write_clips(tmp_path / "data", fine)))
    assert np.isfinite([report.loss for report in reports]).all()
    before, after = (
        checkpoints.load(tmp_path / folder).unet.conv_in.weight for folder in ("start", "run/model")
    )
    # Adam's first step moves every weight that has a gradient: all squares of all poses have one.
    assert (before != after)[:, 8:].flatten(2).any(dim=2).any(dim=0).all()


def test_min_snr_weights_scale_the_loss_of_a_sample(stage, tiny_pipeline, tiny_recipe, monkeypatch):
    """For velocities and a ratio that is not clipped the weight is snr / (snr + 1) = alpha_bar."""
    timesteps = []
    add_noise = tiny_pipeline.scheduler.add_noise
    monkeypatch.setattr(
        tiny_pipeline.scheduler,
        "add_noise",
        lambda *args: timesteps.append(int(args[2])) or add_noise(*args),
    )
    batch = base_stage.make_batch(stage.draw("train", np.arange(1), np.random.default_rng(0)))
    plain, weighted = (
        base_stage.denoising_step(
            tiny_pipeline, batch, recipe=tiny_recipe, seed=0, min_snr_gamma=gamma
        ).item()
        for gamma in (0.0, 1e9)
    )
    alpha_bar = tiny_pipeline.scheduler.alphas_cumprod[timesteps[0]].item()
    assert weighted / plain == pytest.approx(alpha_bar, rel=1e-4)
