"""Poses of people in videos and photos, as pose maps."""

from dreampose.poses.alignment import Body, align, frame_person, measure
from dreampose.poses.editing import (
    change_speed,
    join,
    lock_feet,
    loop,
    mirror,
    retarget,
    smooth,
    trim,
)
from dreampose.poses.estimators import (
    ESTIMATORS,
    BlazePose,
    CatwalkPose,
    DensePose,
    Frames,
    PoseEstimator,
    Track,
    estimator,
    identify,
)
from dreampose.poses.extract import MAX_GAP_SECONDS, complete, extract
from dreampose.poses.grid import from_grid, to_grid
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.poses.photo_check import PhotoCheck, PhotoFinding, check_photo
from dreampose.poses.preview import draw_people, draw_preview, iterate_preview
from dreampose.poses.quality import Quality
from dreampose.poses.segmentation import segment

__all__ = [
    "ESTIMATORS",
    "MAX_GAP_SECONDS",
    "BlazePose",
    "Body",
    "CatwalkPose",
    "DensePose",
    "Frames",
    "Motion",
    "PhotoCheck",
    "PhotoFinding",
    "PoseEstimator",
    "Quality",
    "Track",
    "align",
    "change_speed",
    "check_photo",
    "complete",
    "draw_people",
    "draw_preview",
    "estimator",
    "extract",
    "frame_person",
    "from_grid",
    "identify",
    "iterate_preview",
    "join",
    "lock_feet",
    "loop",
    "measure",
    "mirror",
    "paint",
    "segment",
    "retarget",
    "smooth",
    "to_grid",
    "trim",
]
