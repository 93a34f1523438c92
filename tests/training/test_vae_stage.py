"""The VAE stage learns, looks at the person, and leaves latents of unit variance."""

import numpy as np
import pytest
from accelerate import Accelerator

from dreampose import checkpoints, training, video
from dreampose.config import replace
from dreampose.dataset import Dataset
from dreampose.latents import LatentCodec
from dreampose.training.vae import VaeStage

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


def test_crops_follow_the_person_but_for_a_share(tiny_pipeline, tiny_recipe, tiny_data):
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
