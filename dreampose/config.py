"""Configuration of models, training stages and sampling presets."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dreampose.errors import InputError

__all__ = ["NO_SAVINGS", "PRESETS", "Preset", "Recipe", "Savings", "StageConfig", "replace"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Hyperparameters of one training stage."""

    learning_rate: float
    num_steps: int = 0
    num_epochs: int = 0
    """Passes over all target frames; used if `num_steps` is 0."""
    batch_size: int
    gradient_accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 disables clipping."""
    skip_grad_norm: float = 0.0
    """Steps with a larger gradient norm before clipping are skipped; 0 disables the check. Steps
    with a non-finite loss or gradient are always skipped."""
    max_skipped_steps: int = 10
    """Number of consecutive skipped steps after which training stops with an error."""
    last_batch: str = "fill"
    """Last batch of an epoch: 'fill' completes it with the epoch's first items, 'short' leaves it
    smaller. Data with several frame sizes always use 'short'."""
    lr_schedule: str = "constant"
    """'constant' or 'cosine' (down to a tenth), after `warmup_steps` of linear warm-up."""
    warmup_steps: int = 0
    ema_decay: float = 0.0
    """Decay of the exponential moving average of the weights; 0 disables it."""
    crop_size: int = 0
    """VAE stage: side in pixels of square crops around the subject; 0 trains on whole frames."""
    crop_share: float = 0.0
    """Base stage: fraction of samples with different random crops of target and photo. Subject
    stage: fraction of samples with a cropped target; the photo always has another crop."""
    recolour_share: float = 0.0
    """VAE and base stage: fraction of samples with permuted colour channels, the same permutation
    for target and photo."""
    kl_weight: float = 0.0
    """VAE stage: weight of the KL divergence of an `AutoencoderKL`."""
    latent_noise: float = 0.0
    """VAE stage: standard deviation of normal noise added to the raw latents of an
    `AutoencoderTiny`, which makes the decoder robust against small errors of the denoiser."""
    edge_weight: float = 0.0
    """VAE stages: weight of the L1 error of pixel differences, relative to that of pixels."""
    perceptual_weight: float = 0.0
    """VAE stages: weight of `dreampose.metrics.perceptual.lpips_lite`, relative to pixels."""
    min_snr_gamma: float = 0.0
    """Base stage: gamma of the min-SNR weights (arXiv 2303.09556); 0 disables the weights."""
    offset_noise: float = 0.0
    """Base and subject stage: standard deviation of an offset added to the noise, constant over
    each channel of a sample; it is part of the prediction target. 0 is the paper's noise."""
    reading_weight: float = 0.0
    """Base stage with a trained image encoder: weight of the error of a linear probe that predicts,
    from each token, the pose maps and latents of its patch."""

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
    """Options that reduce the memory of training; results change only by rounding.

    Attributes:
        gradient_checkpointing: recompute activations in the backward pass.
        optimizer: 'adamw', or 'adamw8bit' with 8-bit moments (a quarter of the memory).
        average_on_cpu: keep the moving average of the weights in CPU memory.
    """

    gradient_checkpointing: bool = False
    optimizer: str = "adamw"
    average_on_cpu: bool = False


NO_SAVINGS = Savings()


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Sampling settings; a scale of None stands for the recipe's scale."""

    scheduler: str
    """Class name of a diffusers scheduler."""
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
    "preview": Preset(scheduler="DPMSolverMultistepScheduler", num_steps=0),
}
"""`exact` is the paper's sampler; `balanced` and `fast` use fewer steps of a higher-order solver.
`preview` samples nothing: the refiner makes frames of the warped photo alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Configuration of one model: its components, data and training stages.

    `vae`, `unet` and `image_encoder` are keyword arguments of the diffusers or transformers
    classes; `in_channels` of the UNet does not count the pose channels.
    """

    name: str
    height: int
    width: int
    sizes: tuple[tuple[int, int], ...] = ()
    """Additional frame sizes (height, width) of the training data: each clip is resized to the
    size with the closest aspect ratio. The adapter is built for `height` and `width`."""
    num_poses: int = 5
    pose_channels: int = 2
    vae_class: str = "AutoencoderKL"
    vae: Mapping[str, Any]
    unet: Mapping[str, Any]
    image_encoder: Mapping[str, Any]
    image_encoder_frozen: bool
    photo_fit: str = "letterbox"
    """How the photo is made square for the image encoder: 'letterbox' or 'crop'."""
    image_range: tuple[float, float] = (-1.0, 1.0)
    """Values of black and white in the input of the VAE."""
    pose_range: tuple[float, float] = (0.0, 1.0)
    """Values that 0 and 1 of a pose map have in the input of the UNet; the null pose is 0."""
    pose_resize: str = "area"
    """How pose maps are resized to the latent grid: 'area' (mean of a cell) or 'nearest'."""
    pose_detail: int = 1
    """Rows and columns that a latent cell is divided into for pose maps (space to depth); each
    part is a channel. 1 is the paper's; more show the UNet where in a cell the body's edge is."""
    surface_detail: int = 0
    """Rows and columns that a latent cell is divided into for the confidence of the warped photo;
    0 leaves the surface condition out."""
    refiner: Mapping[str, Any] | None = None
    """Keyword arguments of `dreampose.models.refiner.Refiner`; None leaves the refiner out."""
    upscale: int = 1
    """Size of rendered frames over that of decoded ones; above 1 the refiner upsamples."""
    pose_kind: str = "any"
    """Pose maps that the weights were trained with: 'densepose' (U and V of DensePose), 'painted'
    (U and V painted from body points), or 'any'."""
    frame_fit: str = "letterbox"
    """How photos, frames and their poses are brought to the frame size: 'letterbox' or
    'stretch'."""
    null_image: str = "zeros"
    """Null image condition: 'zeros', or 'black' for the adapter's output for a black photo."""
    photo_latents: bool = True
    """Whether the adapter mixes the photo's VAE latents into its CLIP tokens; False is the paper's
    ablation 'CLIP only'."""
    scheduler: Mapping[str, Any]
    """Keyword arguments of `PNDMScheduler`, and `rescale_betas_zero_snr`; see
    `dreampose.diffusion.schedulers.noise_process`."""
    image_scale: float
    pose_scale: float
    pose_dropout: float = 0.05
    image_dropout: float = 0.05
    both_dropout: float = 0.05
    num_crops: int = 4
    """Crops of every clip that preprocessing encodes; the first is the whole frame."""
    num_recolours: int = 0
    """Versions of every clip with permuted colour channels that preprocessing encodes; they make
    models trained on little data take colours from the photo."""
    crop_scale: float = 0.85
    """Smallest side of a random crop, as a fraction of the frame's."""
    vae_stage: StageConfig
    encoder_stage: StageConfig
    base_stage: StageConfig
    subject_stage: StageConfig
    subject_vae_stage: StageConfig
    lora_rank: int = 4
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "project", "mix")
    """Name suffixes of the layers of UNet and adapter that LoRA finetuning trains."""
    lora_learning_rate: float = 1e-4
    """Learning rate of LoRA finetuning; the other hyperparameters are those of `subject_stage`."""

    def __post_init__(self) -> None:
        for name, known in (
            ("photo_fit", ("letterbox", "crop")),
            ("pose_resize", ("area", "nearest")),
            ("null_image", ("zeros", "black")),
            ("pose_kind", ("any", "densepose", "painted")),
            ("frame_fit", ("letterbox", "stretch")),
        ):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for name in ("image_range", "pose_range"):
            low, high = getattr(self, name)
            if not low < high:
                raise InputError(f"{name} must be increasing, got {low:g} and {high:g}")
        if self.num_poses < 1 or self.num_poses % 2 == 0:
            raise InputError(f"num_poses must be odd and positive, got {self.num_poses}")
        if self.null_image == "black" and not self.image_encoder_frozen:
            raise InputError("image_encoder_frozen must be True for null_image 'black', got False")
        if self.pose_detail < 1 or self.downscale % self.pose_detail:
            raise InputError(
                f"pose_detail must be a divisor of {self.downscale}, the side of a latent cell in "
                f"pixels, got {self.pose_detail}"
            )
        if self.surface_detail < 0 or (
            self.surface_detail and self.downscale % self.surface_detail
        ):
            raise InputError(
                f"surface_detail must be 0 or a divisor of {self.downscale}, the side of a latent "
                f"cell in pixels, got {self.surface_detail}"
            )
        if self.upscale < 1 or (self.upscale > 1 and self.refiner is None):
            raise InputError(
                f"upscale must be at least 1, and 1 without a refiner, got {self.upscale}"
            )
        for size in self.frame_sizes:
            for name, length in zip(("height", "width"), size, strict=True):
                if length < self.downscale or length % self.downscale:
                    raise InputError(f"{name} must be a multiple of {self.downscale}, got {length}")
        if len(set(self.frame_sizes)) < len(self.frame_sizes):
            raise InputError(
                "sizes must be distinct and differ from height and width, got "
                + ", ".join(f"{height}x{width}" for height, width in self.sizes)
            )

    @property
    def downscale(self) -> int:
        """Side of a latent cell in pixels: 8 for all built-in recipes."""
        tiny = self.vae_class == "AutoencoderTiny"
        channels = self.vae["encoder_block_out_channels" if tiny else "block_out_channels"]
        return 2 ** (len(channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Number of latent channels."""
        return int(self.vae["latent_channels"])

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latent grid."""
        return self.height // self.downscale, self.width // self.downscale

    @property
    def pose_planes(self) -> int:
        """Number of channels of one pose on the latent grid."""
        return self.pose_channels * self.pose_detail**2

    @property
    def unet_channels(self) -> int:
        """Number of input channels of the UNet: noisy latents, pose window, warped photo."""
        return self.latent_channels + self.num_poses * self.pose_planes + self.surface_channels

    @property
    def surface_channels(self) -> int:
        """Number of channels of the surface condition: latents of the warp, and its confidence."""
        return self.latent_channels + self.surface_detail**2 if self.surface_detail else 0

    @property
    def needs_surface(self) -> bool:
        """Whether the model uses the photo warped through the body's surface."""
        return bool(self.surface_detail) or self.refiner is not None

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of all frame sizes, `height` and `width` first."""
        return ((self.height, self.width), *self.sizes)

    @property
    def size_step(self) -> int:
        """Side in pixels of a cell of the UNet's coarsest grid: 64 for Stable Diffusion.

        The UNet accepts other sizes as well; its coarsest cells then do not divide the frame
        evenly.
        """
        return self.downscale * 2 ** (len(self.unet["block_out_channels"]) - 1)

    def at(self, height: int, width: int) -> "Recipe":
        """Returns the same recipe with one other frame size.

        Raises:
            InputError: height or width is not a multiple of `downscale`.
        """
        return replace(self, height=height, width=width, sizes=())

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """Selects the frame size with the aspect ratio closest to a given frame's.

        Of several, the largest one that is not larger than the frame, or else the smallest.

        Args:
            height: of the frame in pixels.
            width: of the frame in pixels.
        """

        def key(size: tuple[int, int]) -> tuple[float, bool, int]:
            distance = abs(math.log(size[0] / size[1] * width / height))
            fits = size[0] <= height and size[1] <= width
            area = size[0] * size[1]
            return round(distance, 6), not fits, -area if fits else area

        return min(self.frame_sizes, key=key)

    def to_dict(self) -> dict[str, Any]:
        """Converts to a dictionary of plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Inverse of `to_dict`; accepts lists in place of tuples."""
        plain: dict[str, Any] = _tuples(values)
        for key, stage in plain.items():
            if key.endswith("_stage"):
                plain[key] = StageConfig(**stage)
        return cls(**plain)


def _tuples(value: Any) -> Any:
    """Converts all lists in a JSON value to tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
