"""Several photos of one person in one outfit as a clip for training. Knows nothing of files.

Such a clip has no rate (`fps` is 0): its frames do not follow one another, so the pose window of
each is its own pose, repeated (`Dataset.window`).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from dreampose import poses
from dreampose.config import Recipe
from dreampose.data.schema import working_size
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.types import Clip

FEWEST = 2
"""A photo needs another one of the same person to be its condition."""


def join_stills(
    photos: Sequence[UInt8[np.ndarray, "_ _ 3"]], estimator: poses.PoseEstimator, recipe: Recipe
) -> tuple[Clip, poses.Motion]:
    """The photos that show the person, as a clip of one size, and their poses.

    Each is read on its own: nothing is followed from photo to photo.

    Args:
        photos: of any sizes.
        estimator: reads the poses.
        recipe: of the model; see `working_size` for the clip's size.

    Raises:
        InputError: fewer than two of them show anybody.
    """
    clips = [Clip(frames=photo[None], fps=1.0, source="photo") for photo in photos]
    height, width = min(working_size(clip, recipe) for clip in clips)
    frames: list[np.ndarray] = []
    motions: list[poses.Motion] = []
    for clip in clips:
        fitted = replace(clip, frames=video.fit(clip.frames, height, width))
        try:
            motions.append(poses.extract(fitted, estimator, height=height, width=width))
        except InputError:
            continue
        frames.append(fitted.frames[0])
    if len(frames) < FEWEST:
        raise InputError(
            f"photos must show the person at least {FEWEST} times, "
            f"got {len(frames)} of {len(photos)} with a pose"
        )
    motion = replace(
        motions[0],
        maps=np.concatenate([motion.maps for motion in motions]),
        joints=np.concatenate([motion.joints for motion in motions]),
        confidence=np.concatenate([motion.confidence for motion in motions]),
        fps=0.0,
        source="",
    )
    return Clip(frames=np.stack(frames), fps=0.0), motion
