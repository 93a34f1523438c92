"""The base stage: UNet, adapter and (where it learns) image encoder, on pairs of frames.

Knows nothing of the VAE but its latents, cached in the data. `denoising_step` is also what a
subject's finetuning minimises.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dreampose import checkpoints
from dreampose.config import Recipe, StageConfig
from dreampose.data import Dataset, encoders_fingerprint
from dreampose.data.windows import sample_pairs
from dreampose.diffusion import losses, schedulers
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import (
    clip_tokens,
    drop_conditions,
    encode_black_photo,
    patch_means,
    pose_condition,
)
from dreampose.models.unet import Denoiser
from dreampose.models.vae import LatentCodec
from dreampose.pipeline import DreamPosePipeline
from dreampose.training.stage import Stage
from dreampose.types import Batch, Conditions, Scheduler

_POSE_UNIT = 4.0
"""What pose maps, from 0 to 1, are raised by to weigh as much as latents when tokens are read."""


def columns(recipe: Recipe) -> tuple[str, ...]:
    """Array columns of the data that the stage reads."""
    photo = "tokens" if recipe.image_encoder_frozen else "frames"
    return ("latents", "poses", "crops", "colours", photo)


Blank = tuple[Float[Tensor, "1 n d"], Float[Tensor, "1 c h w"]]
"""What the adapter makes the null image of: tokens and latents of a black photo."""


def denoising_step(
    pipe: DreamPosePipeline,
    batch: Batch,
    *,
    recipe: Recipe,
    seed: int,
    min_snr_gamma: float = 0.0,
    offset_noise: float = 0.0,
    dropout: bool = True,
    blank: Mapping[tuple[int, int], Blank] | None = None,
) -> Float[Tensor, ""]:
    """The loss of a batch: L = E || eps - eps_hat(z_t, t, c) ||² (paper, eq. 1).

    Args:
        pipe: UNet, adapter, image encoder and noise process.
        batch: on the device of the UNet.
        recipe: shares of dropped conditions, how the photo is fitted.
        seed: of noise, timesteps and dropout, drawn on the CPU whatever the device.
        min_snr_gamma: see `StageConfig`.
        offset_noise: see `StageConfig`.
        dropout: drop conditions, as in training.
        blank: from `encode_blank_photo`; what a dropped photo is where that is not zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = batch.latents
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    num_timesteps = int(pipe.scheduler.config["num_train_timesteps"])
    timesteps = torch.randint(num_timesteps, (len(latents),), generator=generator)
    timesteps = timesteps.to(latents.device)
    if offset_noise:
        offsets = torch.randn(*latents.shape[:2], 1, 1, generator=generator)
        noise = noise + offset_noise * offsets.to(latents)
    tokens = batch.tokens
    if tokens is None:
        assert batch.photos is not None
        tokens = clip_tokens(pipe.image_encoder, batch.photos, fit=recipe.photo_fit)
    conditions = Conditions(
        tokens=pipe.adapter(tokens, batch.photo_latents),
        poses=pose_condition(batch.poses, recipe.pose_range),
        null_tokens=None if blank is None else _null_tokens(pipe, blank, latents),
    )
    if dropout:
        conditions = drop_conditions(
            conditions,
            generator,
            pose=recipe.pose_dropout,
            image=recipe.image_dropout,
            both=recipe.both_dropout,
        )
    noisy = schedulers.add_noise(pipe.scheduler, latents, noise, timesteps)
    prediction = Denoiser(unet=pipe.unet)(noisy, timesteps, conditions)
    target = schedulers.training_target(pipe.scheduler, latents, noise, timesteps)
    weights = None
    if min_snr_gamma:
        weights = _min_snr(pipe.scheduler, timesteps, min_snr_gamma)
    return losses.denoising_loss(prediction, target, weights)


def encode_blank_photo(
    pipe: DreamPosePipeline, recipe: Recipe
) -> dict[tuple[int, int], Blank] | None:
    """What the adapter is given for a dropped photo, by the height and width of its latents.

    `None` where its tokens are zeros instead.
    """
    if recipe.null_image == "zeros":
        return None
    codec = LatentCodec(vae=pipe.vae, image_range=recipe.image_range)
    return {
        recipe.at(*size).latent_size: encode_black_photo(
            pipe.image_encoder, codec, *size, recipe.photo_fit
        )
        for size in recipe.frame_sizes
    }


class BaseStage(Stage):
    """Trains the pipeline's UNet and adapter, and its image encoder unless that is frozen."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        data: Dataset | None,
        validation: Dataset | None,
        recipe: Recipe,
        config: StageConfig,
    ) -> None:
        """Takes the parts to train out of `pipe`.

        Args:
            pipe: trained in place.
            data: with the columns `columns(recipe)`, encoded by this pipeline's VAE; `None` where
                only the step itself is looked at.
            validation: held-out data, with the same columns.
            recipe: of the model.
            config: numbers of the stage.

        Raises:
            InputError: the data was encoded by another VAE or frozen encoder.
        """
        super().__init__()
        for each in (data, validation):
            if each is not None:
                check_data(pipe, each)
        # This memory layout is a sixth faster on CPUs, and what tensor cores want.
        self.unet = pipe.unet.requires_grad_(True)
        self.unet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.adapter = pipe.adapter.requires_grad_(True)
        if not recipe.image_encoder_frozen:
            self.image_encoder = trainable_encoder(pipe)
        self.reader: nn.Module | None = None
        if config.reading_weight and not recipe.image_encoder_frozen:
            width = int(pipe.image_encoder.config.hidden_size)
            self.reader = nn.Linear(width, recipe.latent_channels + recipe.pose_planes)
            for parameter in self.reader.parameters():
                nn.init.zeros_(parameter)
        self._outer = (pipe,)
        self._blank = encode_blank_photo(pipe, recipe)
        self._data = {"train": data, "validation": validation}
        self._recipe, self._config = recipe, config

    def num_items(self, split: str) -> int:
        """Target frames of the split."""
        return len(self._data[split] or ())

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """By frame size."""
        data = self._data[split]
        return super().buckets(split) if data is None else data.buckets

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Target frames with their pose windows, and another frame of each one's clip as photo.

        The target and its poses share one view; see `sample_views` for the photo's.
        """
        data = self._data[split]
        assert data is not None
        clips, frames = data.targets[items].T
        photo_frames = sample_pairs(frames, data.num_frames_of[clips], generator)
        views, photo_views = sample_views(self._recipe, len(items), generator, config=self._config)
        names = ("latents", "poses", "photo_latents", "photo_poses")
        cells: dict[str, list[np.ndarray]] = {name: [] for name in names}
        photos: list[np.ndarray] = []
        for clip, frame, photo, view, photo_view in zip(
            *(values.tolist() for values in (clips, frames, photo_frames, views, photo_views)),
            strict=True,
        ):
            window = data.window(clip, frame)
            latents = data.array(clip, "latents")
            cells["latents"].append(latents[view, frame])
            cells["photo_latents"].append(latents[photo_view, photo])
            poses = data.array(clip, "poses")
            cells["poses"].append(poses[view, window])
            cells["photo_poses"].append(poses[photo_view, photo])
            if self._recipe.image_encoder_frozen:
                photos.append(data.array(clip, "tokens")[photo])
            else:
                photos.append(data.photo(clip, photo, view=photo_view))
        batch: dict[str, Any] = {
            key: torch.from_numpy(np.stack(values)).float() for key, values in cells.items()
        }
        if self._recipe.image_encoder_frozen:
            batch["tokens"] = torch.from_numpy(np.stack(photos)).float()
        else:
            batch["photos"] = video.to_model(np.stack(photos))
        return batch | {"seed": int(generator.integers(2**62))}

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """The denoising loss; in training, conditions are dropped and tokens are read as well."""
        pipe, recipe, config = self._outer[0], self._recipe, self._config
        values = make_batch(batch)
        reading = None
        if self.training and self.reader is not None:
            assert values.photos is not None
            tokens = clip_tokens(pipe.image_encoder, values.photos, fit=recipe.photo_fit)
            reading = config.reading_weight * self._reading_loss(tokens, values)
            values = replace(values, photos=None, tokens=tokens)
        loss = denoising_step(
            pipe,
            values,
            recipe=recipe,
            seed=batch["seed"],
            min_snr_gamma=config.min_snr_gamma if self.training else 0.0,
            offset_noise=config.offset_noise if self.training else 0.0,
            dropout=self.training,
            blank=self._blank,
        )
        return loss if reading is None else loss + reading

    def _reading_loss(self, tokens: Float[Tensor, "b n d"], batch: Batch) -> Float[Tensor, ""]:
        assert self.reader is not None
        assert batch.photo_poses is not None
        shown = torch.cat([batch.photo_latents, _POSE_UNIT * batch.photo_poses], dim=1)
        patches = tokens[:, 1:]
        truth, seen = patch_means(shown, self._recipe.photo_fit, patches.shape[1])
        return losses.reading_loss(self.reader(patches), truth, seen)

    def save(self, folder: Path) -> None:
        """Writes the pipeline folder."""
        checkpoints.save(self._outer[0], folder, dtype=None)


def _null_tokens(
    pipe: DreamPosePipeline, blank: Mapping[tuple[int, int], Blank], like: Float[Tensor, "b c h w"]
) -> Float[Tensor, "1 n d"]:
    tokens, latents = blank[like.shape[-2], like.shape[-1]]
    return pipe.adapter(tokens.to(like), latents.to(like))


def make_batch(values: Mapping[str, Any]) -> Batch:
    """The fields of a `Batch` among `values`."""
    names = {field.name for field in fields(Batch)}
    return Batch(**{key: value for key, value in values.items() if key in names})


def sample_views(
    recipe: Recipe, count: int, generator: np.random.Generator, *, config: StageConfig
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """A view for each target and its photo; the order of views is that of `dataset.ARRAYS`.

    A share of the samples is cropped, the photo otherwise than the target so that it cannot be
    copied; another share is in other colours, photo and target alike; the rest is as it is.
    """
    crops = generator.integers(recipe.num_crops, size=count)
    others = generator.integers(1, max(2, recipe.num_crops), size=count)
    recolours = recipe.num_crops + generator.integers(max(1, recipe.num_recolours), size=count)
    kind = generator.random(count)
    is_crop = kind < config.crop_share
    is_recolour = (kind >= 1 - config.recolour_share) & (recipe.num_recolours > 0)
    target = np.select([is_crop, is_recolour], [crops, recolours])
    photo = np.select([is_crop, is_recolour], [(crops + others) % recipe.num_crops, recolours])
    return target, photo


def trainable_encoder(pipe: DreamPosePipeline) -> nn.Module:
    """The image encoder, ready to learn.

    Its last layer norm acts on the pooled output alone, which nobody reads: it stays as it is.
    """
    encoder = pipe.image_encoder.requires_grad_(True)
    for name, parameter in encoder.named_parameters():
        if "post_layernorm" in name:
            parameter.requires_grad_(False)
    return encoder


def check_data(pipe: DreamPosePipeline, data: Dataset) -> None:
    """Checks that data belongs to a model.

    Raises:
        InputError: its latents come from other weights, or it holds another number of views.
    """
    expected = encoders_fingerprint(pipe)
    if data.fingerprint != expected:
        raise InputError(
            f"data must be encoded by the model's own VAE (fingerprint {expected}), got latents "
            f"of {data.fingerprint} in {data.uri!r}: preprocess it with this model"
        )
    planes = pipe.recipe.pose_planes
    num_views = data.recipe.num_crops + data.recipe.num_recolours
    for clip, facts in enumerate(data.clips):
        got = len(data.array(clip, "crops"))
        if got != num_views:
            raise InputError(
                f"data must hold {num_views} views of a clip (num_crops + num_recolours), got "
                f"{got} of {facts['clip_id']!r} in {data.uri!r}"
            )
        if (got := data.array(clip, "poses").shape[2]) != planes:
            raise InputError(
                f"data must hold {planes} channels a pose (pose_channels x pose_detail x "
                f"pose_detail), got {got} of {facts['clip_id']!r} in {data.uri!r}"
            )


def _min_snr(
    scheduler: Scheduler, timesteps: Int64[Tensor, " b"], gamma: float
) -> Float[Tensor, " b"]:
    alpha_bar = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return losses.min_snr_weights(
        alpha_bar / (1 - alpha_bar),
        gamma=gamma,
        prediction_type=str(scheduler.config["prediction_type"]),
    )
