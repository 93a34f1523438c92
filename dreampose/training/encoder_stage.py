"""Encoder stage: trains the image encoder with a contrastive identity loss."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from dreampose import checkpoints
from dreampose.config import Recipe
from dreampose.data import Dataset, augmentation
from dreampose.diffusion import losses
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.adapter import clip_tokens
from dreampose.pipeline import DreamPosePipeline
from dreampose.training.base_stage import trainable_encoder
from dreampose.training.stage import Stage

COLUMNS = ("frames",)
"""Array columns of the data that the stage needs."""

_HEAD_WIDTH = 64


class EncoderStage(Stage):
    """Trains the pipeline's image encoder; the projection head is not saved with the model."""

    def __init__(
        self,
        pipe: DreamPosePipeline,
        *,
        data: Dataset | None,
        validation: Dataset | None,
        recipe: Recipe,
        seed: int,
    ) -> None:
        """Prepares the image encoder of `pipe` for training.

        Args:
            pipe: its image encoder is trained in place.
            data: with the columns `COLUMNS` and at least two subjects; None if only `forward` is
                used.
            validation: held-out data, or None.
            recipe: of the model.
            seed: of the initial weights of the projection head.

        Raises:
            InputError: the data has fewer than two subjects.
        """
        super().__init__()
        self.image_encoder = trainable_encoder(pipe)
        width = int(pipe.image_encoder.config.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(width, _HEAD_WIDTH)
        self._outer = (pipe,)
        self._recipe = recipe
        self._data = {"train": data, "validation": validation}
        self._frames = {
            split: [] if each is None else _frames_by_subject(each)
            for split, each in self._data.items()
        }
        if data is not None and len(self._frames["train"]) < 2:
            raise InputError(
                f"data must have at least two subjects, got {len(self._frames['train'])} "
                f"in {data.uri!r}"
            )

    def num_items(self, split: str) -> int:
        """Number of subjects of a split."""
        return len(self._frames[split])

    def draw(
        self, split: str, items: Int64[np.ndarray, " b"], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Samples two frames of each subject, with independent crops.

        A subject that occurs twice in the last batch of an epoch is used once, because it would be
        its own negative.
        """
        data = self._data[split]
        assert data is not None
        pairs: list[list[np.ndarray]] = [[], []]
        for item in np.unique(items):
            targets = self._frames[split][item]
            chosen = generator.choice(len(targets), 2, replace=len(targets) < 2)
            for photos, (clip, frame) in zip(pairs, targets[chosen].tolist(), strict=True):
                box = augmentation.random_boxes(
                    2,
                    height=self._recipe.height,
                    width=self._recipe.width,
                    smallest=self._recipe.crop_scale,
                    generator=generator,
                )[1]
                photo = data.photo(clip, frame)
                photo = video.fit(photo[None], self._recipe.height, self._recipe.width)[0]
                photos.append(augmentation.crop_frames(photo[None], box, *photo.shape[:2])[0])
        first, second = (video.to_model(np.stack(photos)) for photos in pairs)
        return {"first": first, "second": second}

    def forward(self, batch: dict[str, Any]) -> Float[Tensor, ""]:
        """InfoNCE loss between the embeddings of the two frames."""
        photos = torch.cat([batch["first"], batch["second"]])
        tokens = clip_tokens(self._outer[0].image_encoder, photos, fit=self._recipe.photo_fit)
        first, second = self.head(losses.pool_tokens(tokens)).chunk(2)
        return losses.identity_loss(first, second)

    def save(self, folder: Path) -> None:
        """Writes the pipeline folder."""
        checkpoints.save(self._outer[0], folder, dtype=None)


def _frames_by_subject(data: Dataset) -> list[Int64[np.ndarray, "n 2"]]:
    owners = np.array(data.subjects)[data.targets[:, 0]]
    return [data.targets[owners == subject] for subject in sorted(set(data.subjects))]
