"""VAE stage: trains the VAE on crops around the subject."""

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
from dreampose.training.reconstruction import ReconstructionLoss
from dreampose.training.stage import Stage

COLUMNS = ("frames", "poses")
"""Array columns of the data that the stage needs."""

BACKGROUND_SHARE = 0.15
"""Fraction of crops at a random position instead of around the subject."""

_CALIBRATION_PIXELS = 2**21


class VaeStage(Stage):
    """Trains the pipeline's VAE, of either class, and measures its latent scale."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        data: Dataset | None,
        validation: Dataset | None,
        config: StageConfig,
    ) -> None:
        """Prepares the VAE of `pipe` for training.

        Args:
            pipe: its VAE is trained in place.
            data: with the columns `COLUMNS`; None if only `forward` is used.
            validation: held-out data with the same columns, or None.
            config: crop size and weights of the losses.
        """
        super().__init__()
        self.vae = pipe.vae.requires_grad_(True)
        # A fixed encoder is not trained, and its scale is measured only once, so that cached
        # latents and UNets trained on them stay valid.
        fixed = is_cosine_encoder(self.vae)
        self.vae.encoder.requires_grad_(not fixed)
        start = pipe.recipe.vae.get("scaling_factor", 1.0)
        self._is_calibrated = fixed and self.vae.config["scaling_factor"] != start
        self.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._outer = (pipe,)
        self._data = {"train": data, "validation": validation}
        self._config = config
        self._codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
        self._error = ReconstructionLoss(config, image_range=pipe.recipe.image_range)

    def num_items(self, split: str) -> int:
        """Number of frames of a split."""
        return len(self._data[split] or ())

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """Index of the frame size of each item; one bucket if all crops have the same size."""
        data = self._data[split]
        if data is None:
            return super().buckets(split)
        shortest = min(min(data.size_of(clip)) for clip in range(len(data.clips)))
        if 0 < self._config.crop_size < shortest:
            return super().buckets(split)
        return data.buckets

    def streamed_clips(self, split: str) -> Int64[np.ndarray, " n"] | None:
        """Clip of each item if the data are streamed."""
        data = self._data[split]
        return data.targets[:, 0] if data is not None and data.streamed else None

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Samples 8-bit crops of frames, and a seed for the noise of the latents."""
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
        """Reconstruction loss, for an `AutoencoderKL` with the KL divergence."""
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
        """Writes the pipeline folder, with the latent scale measured on training frames."""
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
        # All frames are resized to one size; only the statistics of latents are measured.
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
