"""Ray Data actor that turns one video into one training row."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dreampose.config import Recipe
from dreampose.errors import InputError
from jobs.common import storage
from jobs.common.failures import reason_of
from jobs.common.video_list import is_photo_set

DATA_FIELDS = ("name", "height", "width", "num_crops", "crop_scale", "num_recolours")
"""Fields of a recipe that the data depend on; the others may change afterwards."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings shared by all rows of a data folder.

    pose: name of the estimator, with its model's file where it has one. model: folder of the model
    that encodes, or None for frames and poses only.
    """

    recipe: Recipe
    pose: str
    seed: int
    model: str | None = None
    model_fingerprint: str | None = None

    def to_json(self) -> str:
        """JSON for the data folder; the model's path is not part of it."""
        recipe = {name: getattr(self.recipe, name) for name in DATA_FIELDS}
        if self.recipe.sizes:
            recipe["sizes"] = [list(size) for size in self.recipe.sizes]
        values = {
            "recipe": recipe,
            "pose": identify_poses(self.pose, self.recipe),
            "seed": self.seed,
            "model_fingerprint": self.model_fingerprint,
        }
        return json.dumps(values, indent=1) + "\n"


def identify_poses(pose: str, recipe: Recipe) -> str:
    """The origin of a data folder's poses: the estimator, and the channels where they are not 2.

    Raises:
        InputError: no estimator has that name, or its file is missing.
    """
    from dreampose import poses

    channels = "" if recipe.pose_channels == 2 else f" of {recipe.pose_channels} channels"
    return poses.identify(pose) + channels


def _read_photos(path: str) -> list[Any]:
    from dreampose.io import video

    photos: list[Any] = []
    for name in path.split(";"):
        with storage.local_copy(name) as file:
            photos.append(video.read_photo(file))
    return photos


class Encoder:
    """Turns videos into rows; one that cannot be used becomes a row with the reason."""

    def __init__(self, settings: Settings, num_threads: int) -> None:
        import torch

        from dreampose import poses

        torch.set_num_threads(num_threads)
        self.settings = settings
        self.estimator = poses.estimator(settings.pose, channels=settings.recipe.pose_channels)
        self.pipe = None
        if settings.model is not None:
            from dreampose.options import loading as model

            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.pipe = model.load(settings.model).to(device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of `clip_id, path, subject, row_file` in, rows of training data out."""
        from dreampose.data import SCHEMA

        return pa.Table.from_pylist([self._row(**row) for row in batch.to_pylist()], schema=SCHEMA)

    def _row(
        self, *, clip_id: str, path: str, subject: str, row_file: str, error: str = ""
    ) -> dict[str, Any]:
        """The row of a video, or one that says why there is none."""
        from dreampose import data
        from dreampose.io import video

        recipe = self.settings.recipe
        try:
            if error:
                raise InputError(error)
            if is_photo_set(path):
                clip, motion = data.join_photos(_read_photos(path), self.estimator, recipe)
            else:
                with storage.local_copy(path, sidecars=(".npz",)) as file:
                    reader = video.VideoReader(file)
                    height, width = data.working_size(reader, recipe)
                    motion = self._known_motion(reader, row_file, height, width)
                    if motion is None:
                        motion = data.extract_motion(
                            reader,
                            self.estimator,
                            height=height,
                            width=width,
                            fit=recipe.frame_fit,
                        )
                    # Never all frames at the size of the file: that may be 4K.
                    clip = video.read(reader, size=(height, width), how=recipe.frame_fit)
            row = data.encode_clip(
                clip,
                motion,
                recipe=recipe,
                pipe=self.pipe,
                seed=self.settings.seed,
                clip_id=clip_id,
                subject=subject,
            )
        except Exception as failure:  # noqa: BLE001 - one odd file must not end the job
            row = data.error_row(
                clip_id=clip_id,
                path=path,
                subject=subject,
                recipe=recipe,
                error=reason_of(failure),
            )
        return row | {"path": path}

    def _known_motion(self, clip: Any, row_file: str, height: int, width: int) -> Any | None:
        """The motion of an earlier row; None where it has to be extracted again.

        Painted maps are painted again from the row's joints, which gives the same maps. The others
        are not in the row at the size that crops are made of.
        """
        from dreampose import data, poses

        if not row_file or self.settings.pose != "blazepose":
            return None
        columns = ["joints", "joints_shape", "confidence", "estimator"]
        (row,) = storage.read_table(row_file, columns).to_pylist()
        if row["joints"] is None:
            return None
        factor = height // self.settings.recipe.size_for(clip.height, clip.width)[0]
        joints = np.frombuffer(row["joints"], data.ARRAYS["joints"]).reshape(row["joints_shape"])
        joints = joints * np.array([factor, factor, factor, 1], np.float32)
        return poses.Motion(
            maps=poses.paint(joints, height, width),
            joints=joints,
            confidence=np.frombuffer(row["confidence"], data.ARRAYS["confidence"]),
            fps=clip.fps,
            estimator=row["estimator"],
        )
