"""TensorBoard curves and sample sheets of a training."""

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import UInt8

from dreampose import checkpoints, poses
from dreampose.data import Dataset
from dreampose.data.dataset import is_clip_file
from dreampose.diffusion import generation
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.models.vae import LatentCodec
from dreampose.training import StepReport, trackers
from jobs.common import storage
from jobs.common.training_options import TrainingOptions

NUM_CLIPS = 4
PRESET = "fast"
EVERY = 10
"""Steps between points of the curves."""


def is_point(report: StepReport) -> bool:
    """Whether the curves have a point at this step."""
    return (
        report.step % EVERY == 0
        or report.step == report.total
        or report.validation_loss is not None
        or report.was_skipped
    )


class SampleSheets:
    """Writes curves and sheets; a no-op unless enabled (on rank 0)."""

    def __init__(self, options: TrainingOptions, *, enabled: bool) -> None:
        self._options = options
        self._enabled = enabled
        self._writer: Any = None
        self._clips: list[Dataset] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, report: StepReport) -> None:
        """Writes one step."""
        if not self._enabled:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # A resumed run repeats steps that a killed one had written already.
            folder = f"{self._options.out}/tensorboard"
            self._writer = SummaryWriter(folder, purge_step=report.step)
        if is_point(report):
            for name, value in trackers.scalars(report).items():
                self._writer.add_scalar(name, value, report.step)
        if report.checkpoint is not None and self._options.stage != "encoder":
            sheet = self._sheet(report.checkpoint / "model")
            if sheet is not None:
                self._writer.add_image("samples", sheet, report.step, dataformats="HWC")
            self._writer.flush()

    def _sheet(self, model: Path) -> UInt8[np.ndarray, "H W 3"] | None:
        """One row a clip: true frames, then the model's."""
        if self._clips is None:
            self._clips = _first_clips(self._options)
        if not self._clips:
            return None
        pipe = checkpoints.load(model)
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        rows: list[np.ndarray] = []
        for clip in self._clips:
            frames = clip.array(0, "frames")
            chosen = np.linspace(0, len(frames) - 1, 4).astype(int)
            if self._options.stage == "vae":
                codec = LatentCodec(vae=pipe.vae, image_range=pipe.recipe.image_range)
                with torch.no_grad():
                    images = video.to_model(frames[chosen]).to(pipe.vae.device)
                    made = video.to_pixels(codec.decode(codec.encode(images)))
            else:
                made = _render(pipe, clip, chosen.tolist())
            rows.append(np.concatenate([*frames[chosen], *made], axis=1))
        width = max(row.shape[1] for row in rows)
        wide = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
        return np.concatenate(wide)


def _render(pipe: Any, clip: Dataset, chosen: list[int]) -> UInt8[np.ndarray, "t H W 3"]:
    """Frames of a clip from its first one and its poses."""
    recipe = clip.recipe
    motion = poses.Motion(
        maps=poses.from_grid(clip.array(0, "poses")[0], recipe.downscale, recipe.pose_detail),
        joints=clip.array(0, "joints"),
        confidence=clip.array(0, "confidence"),
        fps=clip.clips[0]["fps"],
    )
    photo = clip.photo(0, 0)
    request = generation.prepare(
        pipe, [photo], motion, preset=PRESET, align=False, size=clip.size_of(0)
    )
    return generation.render_frames(pipe, request, chosen)


def _first_clips(options: TrainingOptions) -> list[Dataset]:
    """The first usable clips of the held-out data, else of the training data."""
    found: list[Dataset] = []
    columns = ("frames", "poses", "joints", "confidence")
    data = options.val_data or options.data
    for file in storage.find(data):
        if file != data and not is_clip_file(file.removeprefix(data)):
            continue
        try:
            found.append(Dataset(file, recipe=options.recipe, columns=columns))
        except InputError:  # a rejected video
            continue
        if len(found) == NUM_CLIPS:
            break
    return found
