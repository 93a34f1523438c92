"""Base stage: trains UNet, adapter and image encoder on pairs of frames."""

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
from dreampose.types import Batch, Conditions

_POSE_UNIT = 4.0
"""Factor of pose maps in the target of the token probe, for about the variance of latents."""


def columns(recipe: Recipe) -> tuple[str, ...]:
    """Array columns of the data that the stage needs."""
    photo = "tokens" if recipe.image_encoder_frozen else "frames"
    return ("latents", "poses", "crops", "colours", photo)


BlackPhoto = tuple[Float[Tensor, "1 n d"], Float[Tensor, "1 c h w"]]
"""Tokens and latents of a black photo, the adapter's input for the null image."""


def denoising_step(
    pipe: DreamPosePipeline,
    batch: Batch,
    *,
    recipe: Recipe,
    seed: int,
    min_snr_gamma: float = 0.0,
    offset_noise: float = 0.0,
    dropout: bool = True,
    black: Mapping[tuple[int, int], BlackPhoto] | None = None,
) -> Float[Tensor, ""]:
    """Denoising loss of a batch, L = E || eps - eps_hat(z_t, t, c) ||² (paper, eq. 1).

    Args:
        pipe: UNet, adapter, image encoder and noise schedule.
        batch: on the device of the UNet.
        recipe: probabilities of condition dropout, `photo_fit` and `pose_range`.
        seed: of noise, timesteps and dropout, drawn on the CPU for every device.
        min_snr_gamma: see `StageConfig`.
        offset_noise: see `StageConfig`.
        dropout: drop conditions at random, as in training.
        black: result of `encode_black_photos`; None replaces dropped photos by zero tokens.
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
        null_tokens=None if black is None else _null_tokens(pipe, black, latents),
        surface=batch.surface,
    )
    if dropout:
        conditions = drop_conditions(
            conditions,
            generator,
            pose=recipe.pose_dropout,
            image=recipe.image_dropout,
            both=recipe.both_dropout,
        )
    noisy = pipe.scheduler.add_noise(latents, noise, timesteps)
    prediction = Denoiser(unet=pipe.unet)(noisy, timesteps, conditions)
    target = schedulers.training_target(pipe.scheduler, latents, noise, timesteps)
    weights = None
    if min_snr_gamma:
        # Imported here because it imports peft, which takes seconds.
        from diffusers.training_utils import compute_snr

        weights = losses.min_snr_weights(
            compute_snr(pipe.scheduler, timesteps),
            gamma=min_snr_gamma,
            prediction_type=str(pipe.scheduler.config["prediction_type"]),
        )
    return losses.denoising_loss(prediction, target, weights)


def encode_black_photos(
    pipe: DreamPosePipeline, recipe: Recipe
) -> dict[tuple[int, int], BlackPhoto] | None:
    """Encodes a black photo of each frame size, by height and width of the latents.

    Returns None if the recipe's null image is 'zeros'.
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
    """Trains the pipeline's UNet and adapter, and its image encoder unless it is frozen."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        data: Dataset | None,
        validation: Dataset | None,
        recipe: Recipe,
        config: StageConfig,
    ) -> None:
        """Prepares the components of `pipe` for training.

        Args:
            pipe: trained in place.
            data: with the columns `columns(recipe)`, encoded by this pipeline's VAE; None if only
                `forward` is used.
            validation: held-out data with the same columns, or None.
            recipe: of the model.
            config: hyperparameters of the stage.

        Raises:
            InputError: the data was encoded by another VAE or image encoder.
        """
        super().__init__()
        for each in (data, validation):
            if each is not None:
                check_data(pipe, each)
        # channels_last is a sixth faster on CPUs and preferred by tensor cores.
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
        self._black = encode_black_photos(pipe, recipe)
        self._data = {"train": data, "validation": validation}
        self._recipe, self._config = recipe, config

    def num_items(self, split: str) -> int:
        """Number of target frames of a split."""
        return len(self._data[split] or ())

    def buckets(self, split: str) -> Int64[np.ndarray, " n"]:
        """Index of the frame size of each item."""
        data = self._data[split]
        return super().buckets(split) if data is None else data.buckets

    def streamed_clips(self, split: str) -> Int64[np.ndarray, " n"] | None:
        """Clip of each item if the data are streamed."""
        data = self._data[split]
        return data.targets[:, 0] if data is not None and data.streamed else None

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Samples target frames with pose windows, and another frame of each clip as the photo.

        Target and poses have the same view; see `sample_views` for the view of the photo.
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
        """Denoising loss, in training with condition dropout and the loss of the token probe."""
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
            black=self._black,
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
    pipe: DreamPosePipeline,
    black: Mapping[tuple[int, int], BlackPhoto],
    like: Float[Tensor, "b c h w"],
) -> Float[Tensor, "1 n d"]:
    tokens, latents = black[like.shape[-2], like.shape[-1]]
    return pipe.adapter(tokens.to(like), latents.to(like))


def make_batch(values: Mapping[str, Any]) -> Batch:
    """Makes a `Batch` from the entries of `values` that are fields of it."""
    names = {field.name for field in fields(Batch)}
    return Batch(**{key: value for key, value in values.items() if key in names})


def sample_views(
    recipe: Recipe, count: int, generator: np.random.Generator, *, config: StageConfig
) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
    """Samples view indices of targets and photos, in the order of `dreampose.data.ARRAYS`.

    A fraction of the samples has different crops of target and photo, so the photo cannot be
    copied; another fraction has permuted colours, the same for both; the rest are whole frames.

    Args:
        recipe: number of crops and recoloured versions.
        count: number of samples.
        generator: source of randomness.
        config: `crop_share` and `recolour_share`.

    Returns:
        Views of the targets and of the photos.
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
    """Makes the image encoder trainable, except its last layer norm.

    That norm only affects the pooled output, which is not used.
    """
    encoder = pipe.image_encoder.requires_grad_(True)
    for name, parameter in encoder.named_parameters():
        if "post_layernorm" in name:
            parameter.requires_grad_(False)
    return encoder


def check_data(pipe: DreamPosePipeline, data: Dataset) -> None:
    """Checks that data was encoded for a model.

    Raises:
        InputError: the latents come from other weights, or the number of views or of pose channels
            differs.
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
        got = data.shape(clip, "crops")[0]
        if got != num_views:
            raise InputError(
                f"data must have {num_views} views per clip (num_crops + num_recolours), got "
                f"{got} of {facts['clip_id']!r} in {data.uri!r}"
            )
        if (got := data.shape(clip, "poses")[2]) != planes:
            raise InputError(
                f"data must have {planes} channels per pose (pose_channels x pose_detail x "
                f"pose_detail), got {got} of {facts['clip_id']!r} in {data.uri!r}"
            )
