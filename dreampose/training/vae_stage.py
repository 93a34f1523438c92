"""The VAE stage: pixels to latents and back, learned on crops around the person.

Knows nothing of poses beyond where the person is, nor of the UNet.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dreampose import checkpoints
from dreampose.config import StageConfig
from dreampose.data import Dataset, augmentation
from dreampose.diffusion import losses
from dreampose.io import video
from dreampose.models.vae import LatentCodec, calibrate, is_cosine_encoder
from dreampose.pipeline import DreamPosePipeline
from dreampose.training.reconstruction import Reconstruction
from dreampose.training.stage import Stage

COLUMNS = ("frames", "poses")
"""Array columns of the data that the stage reads."""

BACKGROUND_SHARE = 0.15
"""Share of crops placed anywhere instead of on the person, so that the backdrop is learned too."""

_CALIBRATION_PIXELS = 2**21


class VaeStage(Stage):
    """Trains the pipeline's VAE, of either class, and measures the scale of its latents."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        data: Dataset | None,
        validation: Dataset | None,
        config: StageConfig,
    ) -> None:
        """Takes the VAE out of `pipe` for training.

        Args:
            pipe: its VAE is trained in place.
            data: with the columns `COLUMNS`; `None` where only the step itself is looked at.
            validation: held-out data, with the same columns.
            config: crop size, and weights of edges, of what a network sees, and of KL.
        """
        super().__init__()
        self.vae = pipe.vae.requires_grad_(True)
        # A fixed transform stays what it is, once measured its scale too; latents cached before,
        # and a UNet that learned on them, stay right.
        fixed = is_cosine_encoder(self.vae)
        self.vae.encoder.requires_grad_(not fixed)
        start = pipe.recipe.vae.get("scaling_factor", 1.0)
        self._is_calibrated = fixed and self.vae.config["scaling_factor"] != start
        self.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._outer = (pipe,)
        self._data = {"train": data, "validation": validation}
        self._config = config
        self._codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
        self._error = Reconstruction(config, image_range=pipe.recipe.image_range)

    def num_items(self, split: str) -> int:
        """Frames of the split."""
        return len(self._data[split] or ())

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """By frame size, where frames are not cut to squares of one size."""
        data = self._data[split]
        if data is None:
            return super().buckets(split)
        shortest = min(min(data.size_of(clip)) for clip in range(len(data.clips)))
        if 0 < self._config.crop_size < shortest:
            return super().buckets(split)
        return data.buckets

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Crops of these frames, 8-bit, and a seed for the posterior's noise."""
        data = self._data[split]
        assert data is not None
        pixels = [self._crop(data, int(item), generator) for item in items]
        orders = augmentation.random_channel_orders(len(pixels), generator=generator)
        recoloured = generator.random(len(pixels)) < self._config.recolour_share
        for index in np.flatnonzero(recoloured):
            pixels[index] = pixels[index][..., orders[index]]
        return {
            "pixels": torch.from_numpy(np.stack(pixels)),
            "seed": int(generator.integers(2**62)),
        }

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """Reconstruction error, with the posterior's divergence for an `AutoencoderKL`."""
        truth = batch["pixels"].permute(0, 3, 1, 2).float().div(127.5).sub(1)
        truth = self._codec.to_range(truth).contiguous(memory_format=torch.channels_last)
        if isinstance(self.vae, AutoencoderTiny):
            latents = self.vae.encode(truth, return_dict=False)[0]
            if self.training and self._config.latent_noise:
                latents = latents + self._config.latent_noise * self._noise(latents, batch["seed"])
            images = self.vae.decode(latents, return_dict=False)[0]
            return self._error(images, truth)
        posterior = self.vae.encode(truth, return_dict=False)[0]
        latents = posterior.mode()
        if self.training:
            latents = latents + posterior.std * self._noise(latents, batch["seed"])
        images = self.vae.decode(latents, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        loss = self._error(images, truth)
        if self.training and self._config.kl_weight:
            divergence = losses.kl_loss(posterior.mean, posterior.logvar)
            loss = loss + self._config.kl_weight * divergence
        return loss

    @staticmethod
    def _noise(like: Float[Tensor, "b c h w"], seed: int) -> Float[Tensor, "b c h w"]:
        return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)).to(like)

    def save(self, folder: Path) -> None:
        """Writes the pipeline with this VAE, calibrated on evenly spread training frames."""
        if not self._is_calibrated:
            self._calibrate()
        checkpoints.save(self._outer[0], folder, dtype=None)

    def _calibrate(self) -> None:
        data = self._data["train"]
        assert data is not None
        recipe = data.recipe
        count = max(8, _CALIBRATION_PIXELS // (recipe.height * recipe.width))
        items = np.unique(np.linspace(0, len(data) - 1, count).astype(np.int64))
        frames = [data.photo(*data.targets[item].tolist()) for item in items]
        # One size will do: what is measured is the spread of values, not where they are.
        fitted = np.concatenate([video.fit(x[None], recipe.height, recipe.width) for x in frames])
        calibrate(self.vae, self._codec.to_range(video.to_model(fitted)).to(self.vae.device))

    def _crop(
        self, data: Dataset, item: int, generator: np.random.Generator
    ) -> UInt8[np.ndarray, "s s 3"] | UInt8[np.ndarray, "H W 3"]:
        clip, frame = data.targets[item].tolist()
        pixels = data.array(clip, "frames")[frame]
        side = self._config.crop_size
        height, width, _ = pixels.shape
        if not side or side >= min(height, width):
            return pixels
        body = np.flatnonzero(data.array(clip, "poses")[0, frame].any(axis=0))
        if len(body) and generator.random() >= BACKGROUND_SHARE:
            grid_width = width // data.recipe.downscale
            cell = np.divmod(body[generator.integers(len(body))], grid_width)
            centre = np.array(cell) * data.recipe.downscale
            centre = centre + generator.integers(-side // 4, side // 4 + 1, 2)
        else:
            centre = generator.integers(0, (height + 1, width + 1))
        top, left = augmentation.square_boxes(centre[None], side=side, height=height, width=width)[
            0
        ]
        return pixels[top : top + side, left : left + side]
