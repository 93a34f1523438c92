"""VAE stage."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from dreampose import checkpoints, metrics, training
from dreampose.config import replace
from dreampose.data import Dataset
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.metrics.perceptual import lpips_lite
from dreampose.models.vae import LatentCodec
from dreampose.training.reconstruction import ReconstructionLoss
from dreampose.training.vae_stage import VaeStage

KL = {
    "block_out_channels": (4, 4, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
}


@pytest.mark.parametrize("vae_class", ["AutoencoderTiny", "AutoencoderKL"])
def test_loss_falls_and_latents_get_unit_variance(tiny_recipe, tiny_data, tmp_path, vae_class):
    config = replace(
        tiny_recipe.vae_stage, learning_rate=3e-3, batch_size=4, ema_decay=0.0, kl_weight=1e-6,
        lr_schedule="cosine", recolour_share=0.0, latent_noise=0.0,
    )  # fmt: skip
    recipe = replace(tiny_recipe, vae_stage=config)
    if vae_class == "AutoencoderKL":
        recipe = replace(recipe, vae_class=vae_class, vae=KL)

    def train(num_steps: int) -> float:
        *_, report = training.train(
            "vae",
            recipe=recipe,
            data=tiny_data,
            validation=tiny_data,
            out=tmp_path / str(num_steps),
            accelerator=Accelerator(cpu=True),
            max_steps=num_steps,
            num_validation=15,
        )
        assert report.validation_loss is not None
        return report.validation_loss

    assert train(60) < 0.6 * train(1)
    pipe = checkpoints.load(tmp_path / "60" / "model")
    data = Dataset(tiny_data, recipe=recipe)
    frames = np.concatenate([data.array(clip, "frames") for clip in range(3)])
    latents = LatentCodec(vae=pipe.vae).encode(video.to_model(frames))
    assert latents.std().item() == pytest.approx(1, abs=0.02)
    assert latents.mean().item() == pytest.approx(0, abs=0.02)


def test_further_training_of_the_decoder_keeps_latents(tiny_recipe, tiny_data, tmp_path):
    """So that clips encoded before, and the UNet that learned on them, need not be made again."""
    pipe = checkpoints.build(tiny_recipe)
    pipe.vae.register_to_config(scaling_factor=2.5, shift_factor=0.25)
    checkpoints.save(pipe, tmp_path / "start")
    images = torch.rand(2, 3, 64, 48) * 2 - 1
    *_, report = training.train(
        "vae",
        recipe=tiny_recipe,
        data=tiny_data,
        model=tmp_path / "start",
        out=tmp_path / "run",
        accelerator=Accelerator(cpu=True),
        max_steps=2,
    )
    assert report.step == 2
    first, second = (checkpoints.load(tmp_path / name) for name in ("start", "run/model"))
    latents = [LatentCodec(vae=each.vae).encode(images) for each in (first, second)]
    torch.testing.assert_close(latents[0], latents[1])
    weights = [each.vae.decoder.state_dict()["layers.0.weight"] for each in (first, second)]
    assert not torch.equal(*weights)


def test_most_crops_are_around_the_subject(tiny_pipeline, tiny_recipe, tiny_data):
    data = Dataset(tiny_data, recipe=tiny_recipe)
    config = replace(tiny_recipe.vae_stage, crop_size=16, recolour_share=0.0)
    stage = VaeStage(tiny_pipeline, data=data, validation=None, config=config)
    items = np.zeros(400, int)
    pixels = stage.draw("train", items, np.random.default_rng(0))["pixels"].numpy()
    assert pixels.shape == (400, 16, 16, 3)
    on_person = (pixels != 180).any(-1).any((1, 2)).mean()
    assert 0.85 < on_person <= 1.0
    seen = len({crop.tobytes() for crop in pixels})
    assert seen > 20


@pytest.mark.parametrize("image_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_perceptual_loss_is_the_published_score(tiny_recipe, image_range):
    low, high = image_range
    generator = torch.Generator().manual_seed(0)
    pred, truth = torch.rand(2, 3, 3, 40, 32, generator=generator)
    network = metrics.Networks().get(metrics.METRICS["lpips-lite"])
    config = replace(tiny_recipe.vae_stage, edge_weight=0.0)
    errors = [
        ReconstructionLoss(replace(config, perceptual_weight=weight), image_range=image_range)(
            low + (high - low) * pred, low + (high - low) * truth
        )
        for weight in (0.0, 0.3)
    ]
    assert errors[0].item() == pytest.approx((high - low) * (pred - truth).abs().mean().item())
    seen = 0.3 * lpips_lite(network, pred, truth).mean()
    assert (errors[1] - errors[0]).item() == pytest.approx(seen.item(), rel=1e-4)


def test_the_perceptual_network_is_neither_trained_nor_saved(tiny_pipeline, tiny_recipe, tiny_data):
    config = replace(
        tiny_recipe.vae_stage, perceptual_weight=1.0, crop_size=0, edge_weight=0.0, latent_noise=0.0
    )
    data = Dataset(tiny_data, recipe=tiny_recipe)
    stage = VaeStage(tiny_pipeline, data=data, validation=None, config=config)
    plain = VaeStage(
        tiny_pipeline, data=data, validation=None, config=replace(config, perceptual_weight=0.0)
    )
    assert stage.state_dict().keys() == plain.state_dict().keys()
    batch = stage.draw("train", np.arange(2), np.random.default_rng(0))
    gradients = []
    for each in (plain, stage):
        stage.zero_grad()
        each(batch).backward()
        gradients.append(stage.vae.decoder.layers[-1].weight.grad.clone())
    difference = gradients[1] - gradients[0]
    assert difference.isfinite().all()
    assert difference.norm() > 0.01 * gradients[0].norm()


def test_the_perceptual_network_gets_the_images_of_the_stage(tiny_recipe, tiny_data):
    recipe = replace(tiny_recipe, image_range=(0.0, 1.0))
    pipe = checkpoints.build(recipe)
    config = replace(recipe.vae_stage, crop_size=0, edge_weight=0.0)
    data = Dataset(tiny_data, recipe=recipe)
    stages = [
        VaeStage(pipe, data=data, validation=None, config=replace(config, perceptual_weight=weight))
        for weight in (0.0, 1.0)
    ]
    batch = stages[0].draw("train", np.arange(2), np.random.default_rng(0))
    with torch.no_grad():
        plain, both = (stage.eval()(batch).item() for stage in stages)
        truth = batch["pixels"].permute(0, 3, 1, 2) / 255
        codec = LatentCodec(vae=pipe.vae, image_range=(0.0, 1.0))
        shown = (codec.decode(codec.encode(truth * 2 - 1)) + 1) / 2
        network = metrics.Networks().get(metrics.METRICS["lpips-lite"])
        seen = lpips_lite(network, shown, truth)
    assert plain == pytest.approx((shown - truth).abs().mean().item(), rel=1e-4)
    assert both - plain == pytest.approx(seen.mean().item(), rel=1e-3)


def test_crops_too_small_for_the_perceptual_network_are_refused(tiny_pipeline, tiny_recipe):
    config = replace(tiny_recipe.vae_stage, perceptual_weight=0.1, crop_size=16)
    with pytest.raises(InputError, match="crop_size must be at least 32 .* got 16"):
        VaeStage(tiny_pipeline, data=None, validation=None, config=config)
    with pytest.raises(InputError, match="perceptual_weight must not be negative, got -0.1"):
        replace(config, perceptual_weight=-0.1)
