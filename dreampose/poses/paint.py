"""Pose maps painted from BlazePose's landmarks.

A map has two channels. After averaging over 8x8 pixels it must still distinguish parts, sides and
facing. Therefore the ratio V/U differs between parts, and the magnitude of (U, V) encodes the share
of a cell that the body covers.

U: part and position along it. Arms 0.12-0.28 (hand to shoulder), legs 0.32-0.56 (toes to hip),
torso 0.62-0.86, head 0.90-1.00; on torso and head U is larger on the left side of the person and
smaller on the right.
V: torso and head 0.15-0.95 from front to back of the visible surface. Limbs: left 0.12-0.48,
right 0.57-0.93; within these ranges V increases towards the front of the body and towards the
camera, so limbs contrast with the torso in front and in back view.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dreampose.poses.landmarks import ABSENT, INDEX, body_height, point, steady

LEVELS = 255
"""Maps contain multiples of 1/LEVELS, so motion files store them without loss."""

STEADY_RADIUS = 4
"""Radius in frames of the filter of the body size."""

Point = Float[np.ndarray, "3"]


@dataclass(frozen=True, kw_only=True)
class Limb:
    """A tapered capsule and its values in the maps.

    Attributes:
        start: first end: x, y and depth in pixels.
        end: other end.
        radii: half-widths at both ends.
        u: U at both ends.
        v: V at the centre of its range.
        facing: change of V towards the front of the body.
        forward: unit vector to the front of the body.
        leftward: unit vector to the left of the body.
        side: change of U from the right to the left of the body.
        near: change of V towards the camera.
    """

    start: Point
    end: Point
    radii: tuple[float, float]
    u: tuple[float, float]
    v: float
    facing: float
    forward: Point
    leftward: Point
    side: float = 0.0
    near: float = 0.0
    thickness: float | None = None
    """Half depth; None means equal to the half-width."""
    caps: tuple[float, float] | None = None
    """Lengths of the caps beyond the ends; None means equal to the half-widths."""
    bias: float = 0.0
    """Depth offset in pixels towards the camera."""

    def cover(self, height: int, width: int, *, margin: float = 0.0) -> "Cover | None":
        """Projects the limb to a picture; `None` if it lies outside.

        Args:
            height: height of the picture in pixels.
            width: width of the picture in pixels.
            margin: extent of `Cover.area` around the limb, in units of its radii.
        """
        reach = max(self.radii) * (1 + margin)
        ends = np.stack([self.start, self.end])[:, :2]
        if not np.isfinite(ends).all():
            return None
        left, top = np.floor(ends.min(axis=0) - reach).astype(int)
        right, bottom = np.ceil(ends.max(axis=0) + reach).astype(int) + 1
        left, right = max(left, 0), min(right, width)
        top, bottom = max(top, 0), min(bottom, height)
        if left >= right or top >= bottom:
            return None
        axis = ends[1] - ends[0]
        length = max(float(np.hypot(*axis)), 1e-6)
        axis = axis / length
        x = np.arange(left, right)[None, :] + 0.5 - ends[0, 0]
        y = np.arange(top, bottom)[:, None] + 0.5 - ends[0, 1]
        along = np.clip((x * axis[0] + y * axis[1]) / length, 0, 1)
        radius = self.radii[0] + (self.radii[1] - self.radii[0]) * along
        # Surface normal of a round limb: lateral component from the offset to the axis, axial
        # component from the distance beyond its ends, the rest towards the camera.
        aside = (y * axis[0] - x * axis[1]) / radius
        beyond = x * axis[0] + y * axis[1] - along * length
        caps = self.radii if self.caps is None else self.caps
        endways = beyond / np.where(beyond < 0, caps[0], caps[1])
        normal_x = endways * axis[0] - aside * axis[1]
        normal_y = endways * axis[1] + aside * axis[0]
        outward = 1 - normal_x**2 - normal_y**2
        inside = outward > 0
        if margin:
            # Outside of the silhouette, use the normal of the silhouette.
            length = np.sqrt(np.maximum(1 - outward, 1.0))
            normal_x, normal_y = normal_x / length, normal_y / length
        normal_z = -np.sqrt(np.maximum(outward, 0))
        axis_depth = self.start[2] + (self.end[2] - self.start[2]) * along
        thickness = radius if self.thickness is None else self.thickness
        turned, ahead = (
            normal_x * direction[0] + normal_y * direction[1] + normal_z * direction[2]
            for direction in (self.leftward, self.forward)
        )
        return Cover(
            area=np.s_[top:bottom, left:right],
            inside=inside,
            distance=np.sqrt(np.maximum(1 - outward, 0)),
            along=along,
            endways=endways,
            turned=turned,
            ahead=ahead,
            axis_depth=axis_depth,
            depth=axis_depth + normal_z * thickness - self.bias,
        )


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Projection of a limb to a rectangle of a picture; all arrays have its shape.

    Attributes:
        area: the rectangle.
        inside: mask of the limb.
        distance: distance from the axis; 1 at the silhouette.
        along: position along the axis, from 0 at the start to 1 at the end.
        endways: distance beyond the ends in units of the caps, negative at the start.
        turned: component of the surface normal towards the left of the body.
        ahead: component of the surface normal towards the front of the body.
        axis_depth: depth of the axis.
        depth: depth of the surface.
    """

    area: tuple[slice, slice]
    inside: np.ndarray
    distance: np.ndarray
    along: np.ndarray
    endways: np.ndarray
    turned: np.ndarray
    ahead: np.ndarray
    axis_depth: np.ndarray
    depth: np.ndarray


def quantise(maps: Float[np.ndarray, "*t u H W"]) -> Float[np.ndarray, "*t u H W"]:
    """Rounds maps to multiples of 1/255, with at least 1/255 on the person."""
    person = (maps > 0).any(axis=-3, keepdims=True)
    levels = np.clip(np.round(maps * LEVELS), person, LEVELS)
    return (levels / LEVELS).astype(np.float32)


def paint(
    joints: Float[np.ndarray, "t k 4"], height: int, width: int
) -> Float[np.ndarray, "t 2 H W"]:
    """Paints the U and V maps of a tracked person.

    Args:
        joints: landmarks: x, y and depth in pixels of the maps, visibility.
        height: height of the maps in pixels.
        width: width of the maps in pixels.

    Returns:
        Maps in [0, 1], multiples of 1/255; 0 on the background, positive on the person.
    """
    assert joints.shape[1] >= 33, "paint needs BlazePose's points"
    sizes = steady(body_height(joints), min(STEADY_RADIUS, len(joints) - 1))
    maps = np.zeros((len(joints), 2, height, width), np.float32)
    for frame, size, canvas in zip(joints, sizes, maps, strict=True):
        hips = float(point(frame, "middle_hip")[2])
        depth = np.full((height, width), np.inf, np.float32)
        for limb in limbs(frame, float(size)):
            _draw(limb, canvas, depth, hips, float(size))
    return quantise(maps)


def _unit(vector: Point, fallback: Point) -> Point:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 1e-6 else fallback


def _directions(leftward: Point, upward: Point) -> tuple[Point, Point]:
    """Forward and leftward unit vectors of a body, from approximate left and up vectors."""
    leftward = _unit(leftward, np.array([1.0, 0.0, 0.0]))
    forward = _unit(np.cross(leftward, upward), np.array([0.0, 0.0, -1.0]))
    return forward, leftward


def limbs(joints: Float[np.ndarray, "k 4"], size: float) -> Iterator[Limb]:
    """Capsules of a body, from its landmarks and its standing height in pixels."""
    shoulders, hips = point(joints, "middle_shoulder"), point(joints, "middle_hip")
    ears = point(joints, "middle_ear")
    upward = _unit(shoulders - hips, np.array([0.0, -1.0, 0.0]))
    across = {
        name: point(joints, f"left_{name}") - point(joints, f"right_{name}")
        for name in ("shoulder", "hip", "ear")
    }
    forward, leftward = _directions(across["shoulder"] + across["hip"], upward)

    # Projected half-width: half the distance of the joints, to which a margin is added below.
    seen = {name: float(np.hypot(*value[:2])) / 2 for name, value in across.items()}
    yield Limb(
        start=shoulders,
        end=hips - 0.02 * size * upward,
        radii=(
            max(seen["shoulder"] + 0.013 * size, 0.064 * size),
            max(seen["hip"] + 0.048 * size, 0.07 * size),
        ),
        u=(0.79, 0.69),
        side=0.07,
        v=0.55,
        facing=-0.40,
        forward=forward,
        leftward=leftward,
        thickness=0.06 * size,
        caps=(0.035 * size, 0.06 * size),
    )

    # Direction of the face: from the middle of the ears to the nose, stabilised by the ear axis.
    nose = point(joints, "nose") - ears
    nose = nose - (nose @ upward) * upward
    ear_forward, _ = _directions(across["ear"], upward)
    head_forward = _unit(_unit(nose, ear_forward) + 0.5 * ear_forward, forward)
    head_leftward = np.cross(upward, head_forward)
    crown = _unit(ears - shoulders, upward)
    yield Limb(
        start=shoulders,
        end=ears,
        radii=(0.039 * size, 0.033 * size),
        u=(0.79, 0.83),
        side=0.03,
        v=0.55,
        facing=-0.40,
        forward=forward,
        leftward=leftward,
    )
    yield Limb(
        start=ears - 0.019 * size * crown,
        end=ears + 0.024 * size * crown,
        radii=(0.045 * size, 0.051 * size),
        u=(0.95, 0.95),
        side=0.05,
        v=0.55,
        facing=-0.40,
        forward=head_forward,
        leftward=head_leftward,
        bias=0.01 * size,
    )

    for side, v in (("left", 0.30), ("right", 0.75)):
        at = {
            name: point(joints, f"{side}_{name}")
            for name in (
                *("shoulder", "elbow", "wrist", "index", "pinky"),
                *("hip", "knee", "ankle", "heel", "foot"),
            )
        }
        fingers = (at["index"] + at["pinky"]) / 2
        fingers = at["wrist"] + 1.3 * (fingers - at["wrist"])
        arm = (
            (at["shoulder"], at["elbow"], (0.033, 0.026), (0.28, 0.235)),
            (at["elbow"], at["wrist"], (0.026, 0.019), (0.235, 0.17)),
            (at["wrist"], fingers, (0.020, 0.018), (0.15, 0.12)),
        )
        leg = (
            (at["hip"], at["knee"], (0.056, 0.038), (0.56, 0.48)),
            (at["knee"], at["ankle"], (0.038, 0.024), (0.48, 0.40)),
            (at["ankle"], at["foot"], (0.024, 0.017), (0.37, 0.32)),
            (at["heel"], at["foot"], (0.020, 0.017), (0.37, 0.32)),
        )
        arm_hidden, leg_hidden = (
            bool(joints[INDEX[f"{side}_{name}"], 3] <= ABSENT) for name in ("elbow", "knee")
        )
        hidden = (arm_hidden,) * len(arm) + (leg_hidden,) * len(leg)
        for (start, end, radii, u), is_hidden in zip(arm + leg, hidden, strict=True):
            yield Limb(
                # A limb with NaN ends is not drawn but keeps its index.
                start=np.full(3, np.nan) if is_hidden else start,
                end=np.full(3, np.nan) if is_hidden else end,
                radii=(radii[0] * size, radii[1] * size),
                u=u,
                v=v,
                facing=0.10,
                near=0.08,
                forward=forward,
                leftward=leftward,
                bias=0.012 * size,
            )


def _draw(
    limb: Limb,
    canvas: Float[np.ndarray, "2 H W"],
    depth: Float[np.ndarray, "H W"],
    hips: float,
    size: float,
) -> None:
    """Paints the pixels of a limb that are nearer than those painted before."""
    seen = limb.cover(*depth.shape)
    if seen is None:
        return
    area = seen.area
    shown = seen.inside & (seen.depth < depth[area])
    nearness = np.tanh((hips - seen.axis_depth) / (0.15 * size))
    u = limb.u[0] + (limb.u[1] - limb.u[0]) * seen.along + limb.side * seen.turned
    v = limb.v + limb.facing * seen.ahead + limb.near * nearness
    canvas[0][area] = np.where(shown, u, canvas[0][area])
    canvas[1][area] = np.where(shown, v, canvas[1][area])
    depth[area] = np.where(shown, seen.depth, depth[area])
