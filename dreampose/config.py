"""What a recipe says: every size and number of a model and its training. Knows nothing of tensors.

The recipes themselves are in `dreampose.recipes`; variants are made with `replace`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dreampose.errors import InputError

__all__ = ["NO_SAVINGS", "PRESETS", "Preset", "Recipe", "Savings", "StageConfig", "replace"]


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
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    skip_grad_norm: float = 0.0
    """Steps whose gradients have a larger norm than this, before they are scaled, are skipped, as
    those are whose loss or gradients are not finite; 0 knows no too large norm."""
    max_skipped_steps: int = 10
    """Steps skipped in a row at which training stops with an error."""
    last_batch: str = "fill"
    """Where an epoch of data of one frame size ends inside a batch: 'fill' takes its first items
    once more, 'short' takes what is left. Data of several sizes are always 'short'."""
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
    perceptual_weight: float = 0.0
    """VAE stages: weight of `dreampose.metrics.perceptual.lpips_lite` beside that of pixels."""
    min_snr_gamma: float = 0.0
    """Base stage: clip of the min-SNR timestep weights (arXiv 2303.09556); 0 is the plain mean."""
    offset_noise: float = 0.0
    """Base and subject stage: deviation of a normal offset that is added to the noise, one for each
    sample and latent channel, so that whole frames become lighter or darker than by chance; the
    denoiser sees the sum and is asked for it. 0 is the paper's noise."""
    reading_weight: float = 0.0
    """Base stage, where the image encoder learns: weight of the error in reading from each token of
    the photo, by one linear layer, which part of the body its patch shows and what latents. So the
    tokens say early what the denoiser must look up in them."""

    def __post_init__(self) -> None:
        if self.last_batch not in ("fill", "short"):
            raise InputError(f"last_batch must be 'fill' or 'short', got {self.last_batch!r}")
        for name in ("offset_noise", "perceptual_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name):g}")
        if self.max_skipped_steps < 1:
            raise InputError(f"max_skipped_steps must be at least 1, got {self.max_skipped_steps}")


@dataclass(frozen=True, kw_only=True)
class Savings:
    """How training takes less memory. What is learned stays the same but for rounding.

    gradient_checkpointing: activations are computed again when gradients need them. optimizer:
    'adamw', or 'adamw8bit', whose moments take a quarter. average_on_cpu: the moving average lies
    in the CPU's memory.
    """

    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    average_on_cpu: bool = False


NO_SAVINGS = Savings()


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
    sizes: tuple[tuple[int, int], ...] = ()
    """Further frame sizes (height, width) of the training data: each clip is fitted into the one
    whose aspect is nearest its own. The adapter is built for `height` and `width`."""
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
    pose_detail: int = 1
    """Rows and columns of squares that a latent cell is divided into for pose maps. Each square's
    value is a channel of its own: of 1, the paper's, the UNet knows how much of a cell the body
    covers; of more, where in the cell its edge lies."""
    null_image: str = "zeros"
    """The null image condition: 'zeros', or 'black', what the adapter makes of a black photo."""
    photo_latents: bool = True
    """Whether the adapter mixes the photo's VAE latents into its CLIP tokens; without them c_I is
    made of CLIP tokens alone (the paper's ablation 'CLIP only')."""
    scheduler: Mapping[str, Any]
    """Keyword arguments of `PNDMScheduler`: betas and prediction type belong to the weights. And
    `rescale_betas_zero_snr`: the last timestep is noise alone (`schedule.noise_process`)."""
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
        if self.pose_detail < 1 or self.downscale % self.pose_detail:
            raise InputError(
                f"pose_detail must divide the {self.downscale} pixels of a latent cell, "
                f"got {self.pose_detail}"
            )
        for size in self.frame_sizes:
            for name, length in zip(("height", "width"), size, strict=True):
                if length < self.downscale or length % self.downscale:
                    raise InputError(f"{name} must be a multiple of {self.downscale}, got {length}")
        if len(set(self.frame_sizes)) < len(self.frame_sizes):
            raise InputError(
                "sizes must be other than height and width, each once, got "
                + ", ".join(f"{height}x{width}" for height, width in self.sizes)
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

    @property
    def pose_planes(self) -> int:
        """Channels of one pose on the latent grid."""
        return self.pose_channels * self.pose_detail**2

    @property
    def unet_channels(self) -> int:
        """Input channels of the widened UNet: noisy latents, then the pose window."""
        return self.latent_channels + self.num_poses * self.pose_planes

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every size that data may have, the recipe's own first."""
        return ((self.height, self.width), *self.sizes)

    @property
    def size_step(self) -> int:
        """Pixels per cell of the UNet's coarsest grid: 64 for Stable Diffusion.

        Sizes between its multiples work as well, since the UNet brings odd grids back to their
        size, but its coarsest cells then lie unevenly over the frame.
        """
        return self.downscale * 2 ** (len(self.unet["block_out_channels"]) - 1)

    def at(self, height: int, width: int) -> "Recipe":
        """The same recipe for frames of another size alone.

        Raises:
            InputError: height or width is no multiple of `downscale`.
        """
        return replace(self, height=height, width=width, sizes=())

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Which of `frame_sizes` a frame is fitted into: that of the nearest aspect.

        Of several, the largest that is not larger than the frame, or else the smallest.
        """

        def key(size: tuple[int, int]) -> tuple[float, bool, int]:
            away = abs(math.log(size[0] / size[1] * width / height))
            fits = size[0] <= height and size[1] <= width
            area = size[0] * size[1]
            return round(away, 6), not fits, -area if fits else area

        return min(self.frame_sizes, key=key)

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


def _tuples(value: Any) -> Any:
    """The same value with every list in it, which JSON made of a tuple, a tuple again."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
