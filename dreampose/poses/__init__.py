"""Poses: from video to pose maps that follow one person. Knows nothing of diffusion or Ray."""

from dreampose.poses.alignment import Body, align, frame_person, measure
from dreampose.poses.estimators import (
    ESTIMATORS,
    BlazePose,
    CatwalkPose,
    PoseEstimator,
    Track,
    estimator,
)
from dreampose.poses.extract import MAX_GAP_SECONDS, extract
from dreampose.poses.grid import draw_preview, to_grid
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint

__all__ = [
    "ESTIMATORS",
    "MAX_GAP_SECONDS",
    "BlazePose",
    "Body",
    "CatwalkPose",
    "Motion",
    "PoseEstimator",
    "Track",
    "align",
    "draw_preview",
    "estimator",
    "extract",
    "frame_person",
    "measure",
    "paint",
    "to_grid",
]
