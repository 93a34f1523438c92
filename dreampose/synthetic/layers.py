"""Layers: sheets of triangles that move with the bones. Knows nothing of colours or cameras.

What a layer shows is cut by its `keep` field: a pixel is drawn where the field, interpolated over
its triangle, is not negative. So hems and necklines are smooth, not stairs of triangles, and skin
under cloth is dropped by the same field with the sign turned.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float, Int64

from dreampose.synthetic.mesh import Mesh


class Surface(IntEnum):
    """What a pixel shows."""

    BACKGROUND = 0
    SKIN = 1
    EYES = 2
    HAIR = 3
    TOP = 4
    BOTTOM = 5
    DRESS = 6
    SHOES = 7


GARMENTS = (Surface.TOP, Surface.BOTTOM, Surface.DRESS, Surface.SHOES)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One sheet: resting points with bone weights, and triangles with what they show."""

    surface: Surface
    points: Float[np.ndarray, "v 3"]
    weights: Float[np.ndarray, "v bone"]
    keep: Float[np.ndarray, " v"]
    faces: Int64[np.ndarray, "f 3"]
    parts: Int64[np.ndarray, " f"]
    atlas: Float[np.ndarray, "f 3 2"]
    """Place of each face corner on the body atlas."""
    cloth: Float[np.ndarray, "f 3 2"]
    """Around and down the cloth in dm: where patterns are drawn."""
    two_sided: bool = False

    def __post_init__(self) -> None:
        assert len(self.points) == len(self.weights) == len(self.keep)
        assert len(self.faces) == len(self.parts) == len(self.atlas) == len(self.cloth)


def trim(layer: Layer) -> Layer:
    """Without the faces that the keep field removes whole, and without unused points."""
    seen = (layer.keep[layer.faces] >= 0).any(1)
    used, faces = np.unique(layer.faces[seen], return_inverse=True)
    return Layer(
        surface=layer.surface,
        points=layer.points[used],
        weights=layer.weights[used],
        keep=layer.keep[used],
        faces=faces.reshape(-1, 3),
        parts=layer.parts[seen],
        atlas=layer.atlas[seen],
        cloth=layer.cloth[seen],
        two_sided=layer.two_sided,
    )


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The resting body in numbers, dm: bone heads and the heights that tailors use."""

    heads: Float[np.ndarray, "bone 3"]
    names: tuple[str, ...]
    waist: float
    hips: float
    ankle: float
    floor: float

    def head(self, bone: str) -> Float[np.ndarray, "3"]:
        """Where a bone starts."""
        return self.heads[self.names.index(bone)]


def measure(mesh: Mesh, points: Float[np.ndarray, "v 3"]) -> Measures:
    """Reads the measures off a shaped body."""
    heads = points[mesh.heads]
    names = mesh.bone_names
    ankle = float(heads[names.index("LeftFoot")][1])
    low, spine = (float(heads[names.index(bone)][1]) for bone in ("LowerBack", "Spine"))
    return Measures(
        heads=heads,
        names=names,
        waist=low + 0.45 * (spine - low),
        hips=float(heads[names.index("LeftUpLeg")][1]),
        ankle=ankle,
        floor=float(points[:13380, 1].min()),
    )


def along_arm(
    mesh: Mesh,
    measures: Measures,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
) -> Float[np.ndarray, " v"]:
    """Arm coordinate: 0 at the shoulder, 1 at the elbow, 2 at the wrist; -0.4 on the trunk."""
    result = np.full(len(points), -0.4)
    for side in ("Left", "Right"):
        names = [f"{side}Arm", f"{side}ForeArm", f"{side}Hand"]
        shoulder, elbow, wrist = (measures.head(name) for name in names)
        limb = weights[:, [mesh.bone(name) for name in names]]
        hand = weights[:, [k for k, n in enumerate(mesh.bone_names) if _is_hand(n, side)]].sum(1)
        upper = (points - shoulder) @ (elbow - shoulder) / ((elbow - shoulder) ** 2).sum()
        lower = 1 + (points - elbow) @ (wrist - elbow) / ((wrist - elbow) ** 2).sum()
        total = limb[:, 0] + limb[:, 1] + hand
        fore = (limb[:, 1] + hand) / np.maximum(total, 1e-9)
        value = np.where(fore > 0.5, np.maximum(lower, 0.8), np.minimum(upper, 1.2))
        result = np.where(total > 0.35, value, result)
    return result


def _is_hand(bone: str, side: str) -> bool:
    return bone.startswith((f"{side}Hand", f"{side}Finger", f"{side[0]}Thumb"))


def around_axis(
    points: Float[np.ndarray, "n 3"],
    faces: Int64[np.ndarray, "f 3"],
    start: Float[np.ndarray, "3"],
    end: Float[np.ndarray, "3"],
    radius: float,
) -> Float[np.ndarray, "f 3"]:
    """Arc length in dm of face corners around an axis, 0 in front, unbroken inside each face."""
    axis = (end - start) / np.linalg.norm(end - start)
    front = np.array([0.0, 0.0, 1.0]) - axis * axis[2]
    front /= np.linalg.norm(front)
    across = np.cross(front, axis) * (1 if axis[1] < 0 else -1)
    offset = points - start
    angle = np.arctan2(offset @ across, offset @ front)[faces]
    wrapped = np.ptp(angle, axis=1) > np.pi
    angle = np.where(wrapped[:, None] & (angle < 0), angle + 2 * np.pi, angle)
    return angle * radius
