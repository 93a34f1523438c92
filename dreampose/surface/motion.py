"""Warps of photos into every frame of a motion."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from numpy import typing as npt

from dreampose.errors import InputError
from dreampose.poses.motion import Motion
from dreampose.surface import painted
from dreampose.surface.background import background
from dreampose.surface.maps import SurfaceMap, from_pose_maps
from dreampose.surface.texture import build
from dreampose.surface.warp import warp

_ATLAS = "catwalk"
"""The estimator whose U and V are places on one chart of the whole body."""


@dataclass(frozen=True, kw_only=True)
class PosedPhoto:
    """A photo with the pose of the person in it.

    Attributes:
        picture: RGB, fitted to the size of the frames.
        pose: a motion of one frame, of any size with the aspect of the picture.
        mask: where the picture shows the person, booleans (H W); None takes the pose's own area.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    pose: Motion
    mask: npt.NDArray[np.bool_] | None = None


def kind_of(motions: Sequence[Motion]) -> str:
    """The kind of surface map that all motions can give.

    Raises:
        InputError: there is none, as with U and V of parts without the parts.
    """
    if all(motion.estimator == _ATLAS and not motion.painted for motion in motions):
        return "atlas"
    if all(motion.num_channels == 3 and motion.estimator != _ATLAS for motion in motions):
        return "parts"
    if all(motion.has_points for motion in motions):
        return "painted"
    names = ", ".join(dict.fromkeys(motion.estimator or "unknown" for motion in motions))
    raise InputError(
        "motion and photo must name places of the same body surface for the photo to be warped "
        f"(33 points, or maps of part, U and V), got poses of {names}: extract both with one "
        "estimator, densepose with three channels"
    )


def surface_map(motion: Motion, frame: int, kind: str, size: tuple[int, int]) -> SurfaceMap:
    """Surface map of one frame of a motion.

    Args:
        motion: of a kind that `kind_of` allows.
        frame: index of the frame.
        kind: of the map.
        size: height and width of the map.
    """
    height, width = size
    if kind == "painted":
        scale = np.array([width, height, width, 1]) / [motion.width, motion.height, motion.width, 1]
        near = np.clip(np.arange(frame - 9, frame + 10), 0, motion.num_frames - 1)
        joints = (motion.joints[near] * scale).astype(np.float32)
        return painted.paint(joints[9], float(painted.body_sizes(joints)[9]), height, width)
    maps = np.asarray(motion.maps[frame])
    if motion.places is not None:
        exact = motion.places[frame].astype(np.float32) / np.iinfo(np.uint16).max
        maps = np.concatenate([maps[:-2], exact])
    return from_pose_maps(_resize(maps, size), is_atlas=kind == "atlas")


def warp_motion(photos: Sequence[PosedPhoto], motion: Motion) -> UInt8[np.ndarray, "t 5 H W"]:
    """Warps photos into every frame of a motion; see `dreampose.surface.warp`.

    Args:
        photos: of one person, all of the frames' size; the first gives the background.
        motion: where the person is to be.

    Returns:
        Of each frame red, green and blue, then confidence and body, the latter two times 255.

    Raises:
        InputError: the poses do not name places of the same surface.
    """
    kind = kind_of([motion, *(photo.pose for photo in photos)])
    size = photos[0].picture.shape[:2]
    textures = []
    layer = None
    for photo in photos:
        surface = surface_map(photo.pose, 0, kind, size)
        mask = photo.mask if kind == "painted" else None
        textures.append(build(photo.picture, surface, mask))
        if layer is None:
            layer = background(
                photo.picture, surface.body & ~surface.margin if mask is None else mask
            )
    assert layer is not None
    result = np.empty((motion.num_frames, 5, *size), np.uint8)
    for frame, planes in enumerate(result):
        found = warp(textures, surface_map(motion, frame, kind, size), layer)
        planes[:3] = np.moveaxis(found.picture, -1, 0)
        planes[3] = np.rint(255 * found.confidence)
        planes[4] = 255 * found.body
    return result


def backed_share(warps: UInt8[np.ndarray, "t 5 H W"]) -> Float[np.ndarray, " t"]:
    """Share of the visible body that a photo backs, in each frame of `warp_motion`."""
    body = warps[:, 4] > 0
    sure = np.where(body, warps[:, 3] / np.float32(255), 0).sum(axis=(1, 2))
    return (sure / np.maximum(body.sum(axis=(1, 2)), 1)).astype(np.float32)


def _resize(maps: Float[np.ndarray, "u H W"], size: tuple[int, int]) -> Float[np.ndarray, "u h w"]:
    """Maps at another size by the nearest pixel, since neighbours may be of other parts."""
    if maps.shape[1:] == size:
        return maps
    height, width = size
    rows = ((np.arange(height) + 0.5) * maps.shape[1] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * maps.shape[2] / width).astype(int)
    return np.ascontiguousarray(maps[:, rows[:, None], columns])


def draw_backing(
    pictures: UInt8[np.ndarray, "t h w 3"], warps: UInt8[np.ndarray, "t 5 H W"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Draws over pictures of a motion what no photo backs, in magenta.

    Args:
        pictures: such as a preview of the poses, of any size.
        warps: of as many frames, see `warp_motion`.
    """
    height, width = pictures.shape[1:3]
    result = pictures.copy()
    for picture, planes in zip(result, warps, strict=True):
        missing = np.where(planes[4] > 0, 255 - planes[3], 0)
        share = cv2.resize(missing, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
        blended = picture + (share / 255) * 0.7 * (np.array([255, 0, 255]) - picture.astype(float))
        picture[:] = np.rint(blended)
    return result
