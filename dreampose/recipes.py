"""Built-in recipes: `sd14` (arXiv 2304.06025) and the small `catwalk`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreampose.config import Recipe, StageConfig, replace
from dreampose.errors import InputError


def catwalk() -> Recipe:
    """The default model, 160x128 pixels, trained on synthetic data; its weights are included."""
    return Recipe(
        name="catwalk",
        height=160,
        width=128,
        vae_class="AutoencoderTiny",
        vae={
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            # Without blocks the encoder is a fixed cosine transform; only the decoder is trained.
            "num_encoder_blocks": (0, 0, 0, 0),
            "num_decoder_blocks": (3, 3, 2, 1),
            "latent_channels": 16,
            "scaling_factor": 1.0,
        },
        unet={
            "sample_size": (20, 16),
            "in_channels": 16,
            "out_channels": 16,
            "block_out_channels": (64, 128, 192),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 192,
            "norm_num_groups": 16,
        },
        image_encoder={
            "image_size": 128,
            "patch_size": 16,
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "projection_dim": 192,
        },
        image_encoder_frozen=False,
        scheduler={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "v_prediction",
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        image_scale=1.25,
        pose_scale=2.0,
        pose_detail=4,
        lora_rank=2,
        lora_learning_rate=1e-3,
        num_crops=2,
        num_recolours=2,
        vae_stage=StageConfig(
            learning_rate=1e-3, num_steps=5000, batch_size=16, weight_decay=1e-4,
            lr_schedule="cosine", warmup_steps=50, ema_decay=0.999, crop_size=64,
            edge_weight=0.5, perceptual_weight=0.1, latent_noise=0.05,
            recolour_share=0.5,
        ),
        encoder_stage=StageConfig(
            learning_rate=3e-4, num_steps=1000, batch_size=32, lr_schedule="cosine", warmup_steps=50
        ),
        base_stage=StageConfig(
            learning_rate=5e-4, num_steps=4000, batch_size=16, lr_schedule="cosine",
            warmup_steps=200, ema_decay=0.999, crop_share=0.2,
            recolour_share=0.4, reading_weight=0.5,
        ),
        subject_stage=StageConfig(
            learning_rate=1e-4, num_steps=150, batch_size=8, lr_schedule="cosine",
            warmup_steps=10, crop_share=0.15,
        ),
        subject_vae_stage=StageConfig(
            learning_rate=5e-5, num_steps=100, batch_size=4, lr_schedule="cosine",
            warmup_steps=10, crop_size=64, edge_weight=1.0,
        ),
    )  # fmt: skip


def sd14() -> Recipe:
    """The paper's model: Stable Diffusion 1.4, CLIP ViT-B/32, 640x512 pixels."""
    return Recipe(
        name="sd14",
        height=640,
        width=512,
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "latent_channels": 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "scaling_factor": 0.18215,
        },
        unet={
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
            "norm_num_groups": 32,
        },
        image_encoder={
            "image_size": 224,
            "patch_size": 32,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 512,
        },
        image_encoder_frozen=True,
        scheduler={
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        image_scale=8.0,
        pose_scale=3.0,
        vae_stage=StageConfig(learning_rate=5e-5, num_steps=20_000, batch_size=8, crop_size=256),
        encoder_stage=StageConfig(learning_rate=1e-5, num_steps=10_000, batch_size=64),
        base_stage=StageConfig(
            learning_rate=5e-6,
            num_epochs=5,
            batch_size=4,
            gradient_accumulation=4,
            last_batch="short",
        ),
        subject_stage=StageConfig(learning_rate=1e-5, num_steps=500, batch_size=1, crop_share=1.0),
        subject_vae_stage=StageConfig(learning_rate=5e-5, num_steps=1500, batch_size=1),
    )


RECIPES = {"catwalk": catwalk, "sd14": sd14}


def recipe(name: str | Path) -> Recipe:
    """Returns a built-in recipe, or reads one from a JSON file.

    Args:
        name: of a built-in recipe, or path of a JSON file: `Recipe.to_dict()` or the
            `model_index.json` of a model.

    Raises:
        InputError: there is no recipe of this name, or the file contains none.
    """
    if str(name) in RECIPES:
        return RECIPES[str(name)]()
    if Path(name).suffix != ".json":
        raise InputError(
            f"recipe must be one of {', '.join(RECIPES)} or a .json file, got {str(name)!r}"
        )
    try:
        values = json.loads(Path(name).read_text("utf-8"))
        return Recipe.from_dict(values.get("recipe", values))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"recipe must be a JSON file with a recipe, got {str(name)!r} ({error})"
        ) from error


def aspect_sizes(recipe: Recipe) -> tuple[tuple[int, int], ...]:
    """Frame sizes for `Recipe.sizes` with aspect ratios from 2:1 to 1:2.

    Heights and widths are multiples of `Recipe.size_step`. Areas are close to the recipe's, so
    batches of all sizes need about the same memory.

    Returns:
        (height, width) of each size, without the recipe's own.
    """
    step, area = recipe.size_step, recipe.height * recipe.width
    upright = {(side, round(area / side / step) * step) for side in range(step, area // step, step)}
    sizes = upright | {(width, height) for height, width in upright}
    return tuple(
        (height, width)
        for height, width in sorted(sizes, reverse=True)
        if 2 * height >= width > 0
        and height <= 2 * width
        and (height, width) != (recipe.height, recipe.width)
    )


def shrink(recipe: Recipe, divisor: int) -> Recipe:
    """Divides the channel counts of an architecture, to try a large recipe on a CPU.

    Counts are rounded to multiples that groups and heads allow: of 8 for convolutions, of the
    number of heads for the image encoder, whose width is also the width of the UNet's cross
    attention. Layers, tokens, latent channels and frame size do not change.

    Args:
        recipe: such as `sd14()`.
        divisor: of the channel counts, at least 1.
    """

    def channels(old: int, multiple: int = 8) -> int:
        return max(1, round(old / divisor / multiple)) * multiple

    def model(values: Mapping[str, Any]) -> dict[str, Any]:
        key = "block_out_channels"
        new = {k: tuple(map(channels, v)) for k, v in values.items() if k.endswith(key)}
        groups = {k: min(v, 8) for k, v in values.items() if k == "norm_num_groups"}
        return {**values, **new, **groups}

    encoder = recipe.image_encoder
    width = channels(encoder["hidden_size"], encoder["num_attention_heads"])
    return replace(
        recipe,
        vae=model(recipe.vae),
        unet={**model(recipe.unet), "cross_attention_dim": width},
        image_encoder={
            **encoder,
            "hidden_size": width,
            "intermediate_size": channels(encoder["intermediate_size"]),
            "projection_dim": channels(encoder["projection_dim"]),
        },
    )
