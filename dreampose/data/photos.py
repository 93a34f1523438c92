"""Photos of one subject as a clip for training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8

from dreampose import poses
from dreampose.config import Recipe
from dreampose.data.motions import working_size
from dreampose.errors import InputError
from dreampose.io import video
from dreampose.types import Clip

MIN_PHOTOS = 2
"""Each target frame needs another photo of the same subject as its condition."""


def join_photos(
    photos: Sequence[UInt8[np.ndarray, "_ _ 3"]], estimator: poses.PoseEstimator, recipe: Recipe
) -> tuple[Clip, poses.Motion]:
    """Makes a clip from photos of one subject in one outfit, and estimates their poses.

    The clip has `fps` 0, which means that its frames are not consecutive: the pose window of a
    frame repeats its own pose (`Dataset.window`). Photos without a pose are left out.

    Args:
        photos: of any sizes.
        estimator: of the poses, applied to each photo separately.
        recipe: of the model; see `working_size` for the size of the clip.

    Returns:
        The clip, and a motion with one pose per frame.

    Raises:
        InputError: fewer than two photos have a pose.
    """
    clips = [Clip(frames=photo[None], fps=1.0, source="photo") for photo in photos]
    height, width = min(working_size(clip, recipe) for clip in clips)
    frames: list[np.ndarray] = []
    motions: list[poses.Motion] = []
    for clip in clips:
        fitted = replace(clip, frames=video.fit(clip.frames, height, width, recipe.frame_fit))
        try:
            motions.append(poses.extract(fitted, estimator, height=height, width=width))
        except InputError:
            continue
        frames.append(fitted.frames[0])
    if len(frames) < MIN_PHOTOS:
        raise InputError(
            f"photos must show a person in at least {MIN_PHOTOS} of them, "
            f"got {len(frames)} of {len(photos)} with a pose"
        )
    all_places = [motion.places for motion in motions if motion.places is not None]
    motion = replace(
        motions[0],
        places=np.concatenate(all_places) if len(all_places) == len(motions) else None,
        flags=np.concatenate([motion.flags for motion in motions]),
        maps=np.concatenate([motion.maps for motion in motions]),
        joints=np.concatenate([motion.joints for motion in motions]),
        confidence=np.concatenate([motion.confidence for motion in motions]),
        fps=0.0,
        source="",
    )
    return Clip(frames=np.stack(frames), fps=0.0), motion
