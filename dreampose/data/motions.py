"""Motions of clips, fitted to a recipe's frames as its photos are."""

from dataclasses import replace

import numpy as np

from dreampose.config import Recipe
from dreampose.poses import Frames, Motion, PoseEstimator, extract, paint
from dreampose.poses.estimators import Progress
from dreampose.poses.placement import Placement


def working_size(clip: Frames, recipe: Recipe) -> tuple[int, int]:
    """Height and width in pixels at which the motion of a clip should be extracted.

    This is the recipe's frame size for the clip, or twice that size if the video is large enough,
    so that crops need not be upsampled.
    """
    rows, columns = recipe.size_for(clip.height, clip.width)
    factor = 2 if clip.height >= 2 * rows and clip.width >= 2 * columns else 1
    return factor * rows, factor * columns


def extract_motion(
    clip: Frames,
    estimator: PoseEstimator,
    *,
    height: int,
    width: int,
    fit: str = "letterbox",
    progress: Progress | None = None,
) -> Motion:
    """Extracts the motion of a clip with maps of a size.

    Args:
        clip: a `VideoReader` or a decoded clip.
        estimator: what reads the poses.
        height: of the maps in pixels.
        width: of the maps in pixels.
        fit: how the clip is brought to that size, as `Recipe.frame_fit`.
        progress: called after every frame.

    Raises:
        InputError: as `dreampose.poses.extract`.
    """
    if fit == "letterbox":
        return extract(clip, estimator, height=height, width=width, progress=progress)
    # At the clip's own aspect nothing is added around it.
    columns = max(1, round(height * clip.width / clip.height))
    motion = extract(clip, estimator, height=height, width=columns, progress=progress)
    return stretch(motion, height, width)


def stretch(motion: Motion, height: int, width: int) -> Motion:
    """The same motion with maps of another size, whatever the aspect."""
    if (motion.height, motion.width) == (height, width):
        return motion
    placement = Placement(
        scale_x=width / motion.width, scale_y=height / motion.height, left=0.0, top=0.0
    )
    joints = placement.move(motion.joints)
    size = (height, width)
    maps = paint(joints, *size) if motion.painted else placement.warp(motion.maps, size)
    places = None if motion.places is None else placement.warp(motion.places, size)
    return replace(motion, joints=joints.astype(np.float32), maps=maps, places=places)
