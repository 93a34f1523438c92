"""Shared data types and the names of tensor dimensions.

b batch · t frames · p poses of a window · u channels of a pose map · k joints · n tokens ·
d token width · c channels · H W pixels · h w latent grid (H/8, W/8).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A decoded video.

    Attributes:
        frames: 8-bit RGB.
        fps: frames per second.
        source: path of the video file.
        first_frame: index in `source` of the first of `frames`.
    """

    frames: UInt8[np.ndarray, "t H W 3"]
    fps: float
    source: str = ""
    first_frame: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        return iter(self.frames)

    @property
    def height(self) -> int:
        """Height of the frames in pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Width of the frames in pixels."""
        return self.frames.shape[2]

    def between(self, start: int, stop: int) -> "Clip":
        """The frames `start` to `stop - 1`."""
        return replace(self, frames=self.frames[start:stop], first_frame=self.first_frame + start)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of the denoiser for one batch of frames.

    Attributes:
        tokens: image condition c_I, the output of the adapter.
        poses: pose condition c_p on the latent grid, the maps of a window concatenated along the
            channels; zeros are the null condition.
        null_tokens: null image condition; None stands for zeros.
        surface: surface condition, the warped photo on the latent grid; None stands for zeros.
    """

    tokens: Float[Tensor, "b n d"]
    poses: Float[Tensor, "b pc h w"]
    null_tokens: Float[Tensor, "1 n d"] | None = None
    surface: Float[Tensor, "b sc h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training batch: target frames with their pose windows, and other frames as photos.

    Exactly one of `photos` and `tokens` is given.

    Attributes:
        latents: scaled latents of the target frames.
        poses: pose window of each target frame.
        photo_latents: scaled latents of the photos.
        photos: pixels of the photos in [-1, 1], for an image encoder that is trained.
        tokens: cached `last_hidden_state` of a frozen image encoder.
        photo_poses: pose maps of the photos, for the token probe of the base stage.
        surface: surface condition of each target frame; None stands for zeros.
    """

    latents: Float[Tensor, "b c h w"]
    poses: Float[Tensor, "b p u h w"]
    photo_latents: Float[Tensor, "b c h w"]
    photos: Float[Tensor, "b 3 H W"] | None = None
    tokens: Float[Tensor, "b n d"] | None = None
    photo_poses: Float[Tensor, "b u h w"] | None = None
    surface: Float[Tensor, "b sc h w"] | None = None


@runtime_checkable
class Scheduler(Protocol):
    """Interface of diffusers' schedulers, which their common base class does not declare."""

    timesteps: Tensor
    alphas_cumprod: Tensor

    @property
    def config(self) -> Mapping[str, Any]:
        """Constructor arguments, as accepted by `from_config`."""
        ...

    @property
    def init_noise_sigma(self) -> Any:
        """Standard deviation of the initial noise."""
        ...

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps."""
        ...

    def set_timesteps(self, num_inference_steps: int, *, device: Any = None) -> Any:
        """Sets `timesteps` for this number of steps."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Scales noisy latents to the input of the denoiser."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """Computes the latents of the previous timestep."""
        ...


Model = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> prediction for noisy latents x (b c h w) at timestep t; the interface of samplers."""

DenoiserFunction = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(x, t, conditions) -> prediction; `dreampose.models.unet.Denoiser` is one."""
