"""The catwalk's exact pose maps, read from the file beside a clip. Knows nothing of rendering."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dreampose.errors import InputError
from dreampose.io.files import open_arrays
from dreampose.poses import parts as body
from dreampose.types import Clip


@dataclass(frozen=True, kw_only=True)
class GroundTruth:
    """Maps of a clip at its own size, and BlazePose's 33 points."""

    maps: Float[np.ndarray, "t u H W"]
    joints: Float[np.ndarray, "t 33 4"]


def read_ground_truth(clip: Clip, channels: int = 2) -> GroundTruth:
    """Reads `NAME.npz` beside `NAME.mp4`: arrays `parts`, `uv` and `joints`.

    The maps are U and V of the body's atlas where a part is seen; of 3 channels the first is
    the part / 24.

    Raises:
        InputError: `channels` is neither 2 nor 3; the file is missing, lacks an array, or is of
            another length or size.
    """
    if channels not in (2, 3):
        raise InputError(f"channels must be 2 or 3, got {channels}")
    path = Path(clip.source).with_suffix(".npz") if clip.source else None
    if path is None or not path.is_file():
        raise InputError(
            "estimator 'catwalk' needs the ground truth beside the video, "
            f"got no file {str(path) if path else '(the clip has no source)'!r}"
        )
    try:
        with open_arrays(path) as file:
            parts, uv, joints = file["parts"], file["uv"], file["joints"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"ground truth must hold parts, uv and joints, got {str(path)!r} ({error})"
        ) from error
    frames = slice(clip.first_frame, clip.first_frame + len(clip.frames))
    parts, uv, joints = parts[frames], uv[frames], joints[frames]
    if parts.shape != clip.frames.shape[:3]:
        raise InputError(
            f"ground truth must cover the clip's {clip.frames.shape[:3]} frames, height and width, "
            f"got {parts.shape} in {str(path)!r}"
        )
    scaled = np.moveaxis(uv.astype(np.float32) / np.iinfo(uv.dtype).max, -1, 1)
    # The file counts from the middle of the first pixel, motions from the picture's corner.
    places = joints + np.array([0.5, 0.5, 0], np.float32)
    full = np.concatenate([places, np.ones_like(joints[..., :1])], axis=-1)
    return GroundTruth(maps=body.to_maps(parts, scaled, channels), joints=full.astype(np.float32))
