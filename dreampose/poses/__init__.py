"""Poses: from video to pose maps that follow one person. Knows nothing of diffusion or Ray."""

from dreampose.poses.alignment import Body, align, frame_person, measure
from dreampose.poses.estimators import (
    ESTIMATORS,
    BlazePose,
    CatwalkPose,
    DensePose,
    PoseEstimator,
    Track,
    estimator,
    identify,
)
from dreampose.poses.extract import MAX_GAP_SECONDS, complete, extract
from dreampose.poses.grid import draw_preview, from_grid, to_grid
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.poses.segmentation import segment

__all__ = [
    "ESTIMATORS",
    "MAX_GAP_SECONDS",
    "BlazePose",
    "Body",
    "CatwalkPose",
    "DensePose",
    "Motion",
    "PoseEstimator",
    "Track",
    "align",
    "complete",
    "draw_preview",
    "estimator",
    "extract",
    "from_grid",
    "frame_person",
    "identify",
    "measure",
    "paint",
    "segment",
    "to_grid",
]
