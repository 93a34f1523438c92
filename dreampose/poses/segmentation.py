"""Segmentation of the person in a photo by BlazePose."""

from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from numpy import typing as npt

from dreampose.errors import InputError
from dreampose.poses.blazepose import LandmarkReader, PersonDetector
from dreampose.poses.tracking import Follower


@lru_cache(maxsize=1)
def _follower() -> Follower:
    return Follower(PersonDetector(threshold=0.3), LandmarkReader())


def segment(picture: UInt8[np.ndarray, "H W 3"]) -> npt.NDArray[np.bool_]:
    """Where a picture shows its largest person, booleans (H W).

    Raises:
        InputError: the picture shows no person.
    """
    people = _follower().find(picture)
    if not people:
        raise InputError("photo must show a person, got nobody in it")
    return people[0].segment(*picture.shape[:2]) > 0.5
