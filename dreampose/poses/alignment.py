"""Alignment of a motion to the body in a photo."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Shaped

from dreampose.errors import InputError
from dreampose.poses.landmarks import body_height, point, steady
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.poses.placement import Placement

WALKS_AWAY = 0.5
"""Horizontal travel in body heights above which a person walks through the picture."""

_UPRIGHT = 0.85
"""Cosine of the largest lean of an upright body, about 30 degrees."""
_DRIFT_SECONDS = 0.5
"""Time scale that separates drift (slower) from the sway of the gait (faster)."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """Standing height, floor line and horizontal centre of a body, in pixels."""

    height: float
    floor: float
    center: float


@dataclass(frozen=True, kw_only=True)
class _Measures:
    """Body height, lowest point, horizontal centre and uprightness of each frame."""

    height: Float[np.ndarray, " t"]
    floor: Float[np.ndarray, " t"]
    center: Float[np.ndarray, " t"]
    upright: Bool[np.ndarray, " t"]

    def body(self) -> Body:
        """Medians over the upright frames, or over all frames if none is upright."""
        used = self.upright if self.upright.any() else np.ones_like(self.upright)
        return Body(
            height=float(np.median(self.height[used])),
            floor=float(np.median(self.floor[used])),
            center=float(np.median(self.center[used])),
        )


def _measure_joints(motion: Motion) -> _Measures:
    height = body_height(motion.joints)
    feet = [
        point(motion.joints, f"{side}_{name}")[:, 1]
        for side in ("left", "right")
        for name in ("ankle", "heel", "foot")
    ]
    shoulders, hips = point(motion.joints, "middle_shoulder"), point(motion.joints, "middle_hip")
    up = hips - shoulders
    return _Measures(
        height=height.astype(np.float64),
        floor=np.max(feet, axis=0).astype(np.float64),
        center=((shoulders + hips)[:, 0] / 2).astype(np.float64),
        upright=up[:, 1] > _UPRIGHT * np.linalg.norm(up[:, :2], axis=-1),
    )


def _measure_maps(motion: Motion) -> _Measures:
    person: np.ndarray = np.any(motion.maps > 0, axis=1)
    rows: np.ndarray = np.any(person, axis=2)
    columns: np.ndarray = np.any(person, axis=1)
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    bottom = motion.height - rows[:, ::-1].argmax(axis=1)
    right = motion.width - columns[:, ::-1].argmax(axis=1)
    if not person.any(axis=(1, 2)).all():
        raise InputError("motion must show a person in every frame, got a frame with an empty map")
    return _Measures(
        height=(bottom - top).astype(np.float64),
        floor=bottom.astype(np.float64),
        center=(columns * (np.arange(motion.width) + 0.5)).sum(axis=1) / columns.sum(axis=1),
        upright=(bottom - top) > 1.5 * (right - left),
    )


def measure(motion: Motion) -> Body:
    """Measures the body of a motion: medians over the frames in which it is upright."""
    return (_measure_joints if motion.has_points else _measure_maps)(motion).body()


def align(motion: Motion, body: Motion | Body, *, follow: bool | None = None) -> Motion:
    """Fits the scale and position of a motion to the body in a photo.

    All frames are scaled by the ratio of the body heights and moved to the floor line and the
    horizontal centre of the photo's body. Height over the floor and sway are kept. Painted motions
    are painted again from their joints; other maps are warped by nearest neighbour.

    Args:
        motion: the motion to align.
        body: motion of one frame that the same estimator extracted from the photo, or measurements.
        follow: True removes the horizontal drift of a person who walks through the picture; False
            keeps it; None removes it if the body moves by more than half its height.
    """
    both = (motion, body) if isinstance(body, Motion) else (motion,)
    by_joints = all(one.has_points for one in both)
    read = _measure_joints if by_joints else _measure_maps
    measures = read(motion)
    target = read(body).body() if isinstance(body, Motion) else body
    source = measures.body()
    height, width = (body if isinstance(body, Motion) else motion).maps.shape[2:]
    scale = target.height / max(source.height, 1e-6)

    drift = _drift(measures.center, motion.fps)
    if follow is None:
        follow = bool(np.ptp(drift) > WALKS_AWAY * source.height)
    centers = drift if follow else np.full(motion.num_frames, source.center)
    placements = [
        Placement(
            scale_x=scale,
            scale_y=scale,
            left=float(target.center - scale * center),
            top=float(target.floor - scale * source.floor),
        )
        for center in centers
    ]
    joints = np.stack([p.move(j) for p, j in zip(placements, motion.joints, strict=True)])

    def warped(values: Shaped[np.ndarray, "t u H W"]) -> Shaped[np.ndarray, "t u h w"]:
        return np.concatenate(
            [p.warp(v[None], (height, width)) for p, v in zip(placements, values, strict=True)]
        )

    maps = paint(joints, height, width) if motion.painted else warped(motion.maps)
    places = None if motion.places is None else warped(motion.places)
    return replace(motion, maps=maps, joints=joints, places=places)


def frame_person(
    motion: Motion, *, size: float = 0.8, floor: float = 0.94, follow: bool | None = True
) -> Motion:
    """Centres the person in the maps, as if the camera followed.

    Args:
        motion: the motion to align.
        size: body height as a fraction of the height of the maps.
        floor: floor line as a fraction of the height of the maps.
        follow: see `align`.
    """
    body = Body(height=size * motion.height, floor=floor * motion.height, center=motion.width / 2)
    return align(motion, body, follow=follow)


def _drift(centers: Float[np.ndarray, " t"], fps: float) -> Float[np.ndarray, " t"]:
    """Low-pass filter of a path: a running mean that preserves straight lines up to the ends."""
    radius = min(max(1, round(_DRIFT_SECONDS * fps)), len(centers) - 1)
    if radius < 1:
        return centers
    padded = np.pad(steady(centers, 1), radius, mode="reflect", reflect_type="odd")
    kernel = np.full(2 * radius + 1, 1 / (2 * radius + 1))
    return np.convolve(padded, kernel, mode="valid")
