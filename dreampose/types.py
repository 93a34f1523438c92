"""The values that travel between rooms, and the letters of their dimensions.

b batch · t frames · p poses of a window · u channels of a pose map · k joints · n tokens ·
d token width · c channels · H W pixels · h w latent grid (H/8, W/8).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A decoded video: 8-bit RGB frames, frames per second, and where it came from.

    first_frame: index in `source` of the first frame held.
    """

    frames: UInt8[np.ndarray, "t H W 3"]
    fps: float
    source: str = ""
    first_frame: int = 0


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What the denoiser is told about one batch of frames.

    tokens: image condition c_I after the adapter; zeros are the null condition.
    poses: the pose window c_p on the latent grid, `p` maps of 2 channels joined; zeros are null.
    null_tokens: the null image condition where it is not zeros.
    """

    tokens: Float[Tensor, "b n d"]
    poses: Float[Tensor, "b pc h w"]
    null_tokens: Float[Tensor, "1 n d"] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training batch: a target frame with its pose window, and another frame as the photo.

    latents: target frame, scaled latents. photo_latents: condition photo, scaled latents.
    Exactly one of `photos` (pixels in [-1, 1], for an encoder that learns) and `tokens`
    (cached `last_hidden_state` of a frozen encoder) is given. photo_poses: the photo's own pose
    maps, where the stage asks its tokens for them.
    """

    latents: Float[Tensor, "b c h w"]
    poses: Float[Tensor, "b p u h w"]
    photo_latents: Float[Tensor, "b c h w"]
    photos: Float[Tensor, "b 3 H W"] | None = None
    tokens: Float[Tensor, "b n d"] | None = None
    photo_poses: Float[Tensor, "b u h w"] | None = None


@runtime_checkable
class Scheduler(Protocol):
    """What is used of diffusers' schedulers: their common base class does not name it."""

    timesteps: Tensor
    alphas_cumprod: Tensor

    @property
    def config(self) -> Mapping[str, Any]:
        """Options, with which `from_config` makes the like."""
        ...

    @property
    def init_noise_sigma(self) -> Any:
        """Deviation that the start noise must have."""
        ...

    def set_timesteps(self, num_inference_steps: int, *, device: Any = None) -> Any:
        """Chooses the timesteps of a run."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Latents as the denoiser expects them."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        """One step towards the image."""
        ...


Model = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> prediction for noisy latents x (b c h w) at timestep t: the one thing samplers know."""

DenoiserFunction = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(x, t, conditions) -> prediction; `dreampose.models.unet.Denoiser` is one."""
