"""Recipes: every size and number of a model and its training. Knows nothing of tensors.

A recipe is a function that returns a frozen `Recipe`; variants are made with `replace`.
`sd14()` is the paper (arXiv 2304.06025), `catwalk()` the small embedded default.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dreampose.errors import InputError

__all__ = [
    "PRESETS",
    "RECIPES",
    "Preset",
    "Recipe",
    "StageConfig",
    "catwalk",
    "recipe",
    "replace",
    "sd14",
    "shrink",
]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Numbers of one training stage."""

    learning_rate: float
    num_steps: int = 0
    num_epochs: int = 0
    """Used where `num_steps` is 0: passes over all target frames."""
    batch_size: int
    gradient_accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    lr_schedule: str = "constant"
    """'constant' or 'cosine' (to a tenth), both after `warmup_steps` of linear warm-up."""
    warmup_steps: int = 0
    ema_decay: float = 0.0
    """0 switches the moving average off."""
    crop_size: int = 0
    """VAE stage: side in pixels of the person-centred square crops; 0 trains on whole frames."""
    crop_share: float = 0.0
    """Base stage: share of samples whose target and photo are cropped, each its own way. Subject:
    share whose target is cropped; the photo is always another view."""
    recolour_share: float = 0.0
    """VAE and base stage: share of samples in other colours, target and photo alike."""
    kl_weight: float = 0.0
    latent_noise: float = 0.0
    """VAE stage: deviation of the normal noise added to raw latents of an `AutoencoderTiny`, which
    has no posterior of its own, so that its decoder bears the denoiser's small errors."""
    edge_weight: float = 0.0
    """VAE stages: weight of the error of pixel differences beside that of pixels."""
    min_snr_gamma: float = 0.0
    """Base stage: clip of the min-SNR timestep weights (arXiv 2303.09556); 0 is the plain mean."""
    reading_weight: float = 0.0
    """Base stage, where the image encoder learns: weight of the error in reading from each token of
    the photo, by one linear layer, which part of the body its patch shows and what latents. So the
    tokens say early what the denoiser must look up in them."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How a video is sampled. `None` scales take the recipe's."""

    scheduler: str
    """Class name of any diffusers scheduler."""
    num_steps: int
    image_scale: float | None = None
    pose_scale: float | None = None
    scheduler_kwargs: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, Preset] = {
    "exact": Preset(scheduler="PNDMScheduler", num_steps=100),
    "balanced": Preset(
        scheduler="DPMSolverMultistepScheduler",
        num_steps=20,
        scheduler_kwargs={"timestep_spacing": "trailing"},
    ),
    "fast": Preset(
        scheduler="DPMSolverMultistepScheduler",
        num_steps=8,
        scheduler_kwargs={"timestep_spacing": "trailing"},
    ),
}
"""`exact` is the paper's sampler; the others take fewer steps of a higher-order solver."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model: its components' configurations, its data and its training.

    `vae`, `unet` and `image_encoder` are keyword arguments of the diffusers or transformers class
    named by the matching `*_class` field; the UNet's `in_channels` is that of the unwidened UNet.
    """

    name: str
    height: int
    width: int
    num_poses: int = 5
    pose_channels: int = 2
    vae_class: str = "AutoencoderKL"
    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    image_encoder: Mapping[str, Any]
    image_encoder_frozen: bool
    photo_fit: str = "letterbox"
    """How the photo becomes the encoder's square input: 'letterbox' (whole person) or 'crop'."""
    image_range: tuple[float, float] = (-1.0, 1.0)
    """What black and white are to the VAE."""
    pose_range: tuple[float, float] = (0.0, 1.0)
    """What 0 and 1 of a pose map are to the UNet; the null pose is 0 in any case."""
    pose_resize: str = "area"
    """How pose maps come onto the latent grid: 'area' (mean of a cell) or 'nearest'."""
    null_image: str = "zeros"
    """The null image condition: 'zeros', or 'black', what the adapter makes of a black photo."""
    scheduler: Mapping[str, Any]
    """Keyword arguments of `PNDMScheduler`: betas and prediction type belong to the weights."""
    image_scale: float
    pose_scale: float
    pose_dropout: float = 0.05
    image_dropout: float = 0.05
    both_dropout: float = 0.05
    num_crops: int = 4
    """Crops of every clip that preprocessing encodes: the first is the whole frame."""
    num_recolours: int = 0
    """Whole-frame versions of every clip in other colours (channels exchanged) that are encoded
    too: the more colours a small data set shows, the better a model learns to take them from the
    photo."""
    crop_scale: float = 0.85
    """Smallest side of a random crop, as a share of the frame's."""
    vae_stage: StageConfig
    encoder_stage: StageConfig
    base_stage: StageConfig
    subject_stage: StageConfig
    subject_vae_stage: StageConfig
    lora_rank: int = 4
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "project", "mix")
    """Layers of UNet and adapter that low-rank finetuning changes, by the end of their names."""
    lora_learning_rate: float = 1e-4
    """Of low-rank finetuning; its other numbers are those of `subject_stage`."""

    def __post_init__(self) -> None:
        for name, known in (
            ("photo_fit", ("letterbox", "crop")),
            ("pose_resize", ("area", "nearest")),
            ("null_image", ("zeros", "black")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("image_range", "pose_range"):
            low, high = getattr(self, name)
            if not low < high:
                raise InputError(f"{name} must be two rising numbers, got {low:g} and {high:g}")
        if self.num_poses < 1 or self.num_poses % 2 == 0:
            raise InputError(f"num_poses must be odd and positive, got {self.num_poses}")
        if self.null_image == "black" and not self.image_encoder_frozen:
            raise InputError(
                "null_image 'black' must go with a frozen image_encoder, got one that learns"
            )
        for name in ("height", "width"):
            if getattr(self, name) % self.downscale:
                raise InputError(
                    f"{name} must be a multiple of {self.downscale}, got {getattr(self, name)}"
                )

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, 8 at both scales."""
        tiny = self.vae_class == "AutoencoderTiny"
        channels = self.vae["encoder_block_out_channels" if tiny else "block_out_channels"]
        return 2 ** (len(channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae["latent_channels"])

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.height // self.downscale, self.width // self.downscale

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Inverse of `to_dict`; accepts what JSON makes of tuples."""
        plain: dict[str, Any] = _tuples(values)
        for key, stage in plain.items():
            if key.endswith("_stage"):
                plain[key] = StageConfig(**stage)
        return cls(**plain)


def catwalk() -> Recipe:
    """The embedded default: 160x128, trained by this project on its own synthetic data."""
    return Recipe(
        name="catwalk",
        height=160,
        width=128,
        vae_class="AutoencoderTiny",
        vae={
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            # Without blocks, the encoder is a fixed cosine transform; the decoder is what learns.
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
        lora_rank=2,
        lora_learning_rate=1e-3,
        num_crops=2,
        num_recolours=2,
        vae_stage=StageConfig(
            learning_rate=1e-3, num_steps=5000, batch_size=16, weight_decay=1e-4,
            lr_schedule="cosine", warmup_steps=50, ema_decay=0.999, crop_size=64,
            edge_weight=0.5, latent_noise=0.05,
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
            learning_rate=1e-4, num_steps=100, batch_size=8, crop_share=0.5
        ),
        subject_vae_stage=StageConfig(
            learning_rate=2e-4, num_steps=100, batch_size=4, crop_size=64, edge_weight=1.0
        ),
    )  # fmt: skip


def sd14() -> Recipe:
    """The paper's scale: Stable Diffusion 1.4, CLIP ViT-B/32, 640x512."""
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
            learning_rate=5e-6, num_epochs=5, batch_size=4, gradient_accumulation=4
        ),
        subject_stage=StageConfig(learning_rate=1e-5, num_steps=500, batch_size=1, crop_share=1.0),
        subject_vae_stage=StageConfig(learning_rate=5e-5, num_steps=1500, batch_size=1),
    )


RECIPES = {"catwalk": catwalk, "sd14": sd14}


def recipe(name: str | Path) -> Recipe:
    """The recipe of that name, or the one in that JSON file.

    The file holds `Recipe.to_dict`, or is the `model_index.json` of a model.

    Raises:
        InputError: no recipe has that name, or the file holds none.
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
            f"recipe must be a file that holds one, got {str(name)!r} ({error})"
        ) from error


def _tuples(value: Any) -> Any:
    """The same value with every list in it, which JSON made of a tuple, a tuple again."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def shrink(recipe: Recipe, divisor: int) -> Recipe:
    """The same architecture with channel counts divided, for trying a large recipe on a CPU.

    Counts are rounded to the nearest multiple that groups and heads allow: of 8 for
    convolutions, of the number of heads for the image encoder, whose width is also that of
    the UNet's cross attention. Layers, tokens, latent channels and resolution stay.

    Args:
        recipe: such as `sd14()`.
        divisor: at least 1.
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
