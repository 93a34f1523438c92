"""Body mesh: shape targets, skeleton, skinning, measurements and surface layers.

Lengths are in decimetres; y is up. In the rest pose the body faces +z with its arms held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float, Int64

NUM_BODY_POINTS = 13380
NUM_LANDMARKS = 33
TARGET_STEP = 0.004
"""Resolution in dm at which shape targets are stored."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The base mesh. Its last points are the bone heads and then the BlazePose landmarks."""

    points: Float[np.ndarray, "v 3"]
    bone_names: tuple[str, ...]
    bone_parents: tuple[int, ...]
    weights: Float[np.ndarray, "v bone"]
    body_faces: Int64[np.ndarray, "f 3"]
    body_uv: Float[np.ndarray, "f 3 2"]
    body_parts: Int64[np.ndarray, " f"]
    eye_faces: Int64[np.ndarray, "g 3"]
    tights_faces: Int64[np.ndarray, "h 3"]
    tights_uv: Float[np.ndarray, "h 3 2"]
    tights_parts: Int64[np.ndarray, " h"]
    skirt_uv: Float[np.ndarray, "s 3 2"]
    skirt_parts: Int64[np.ndarray, " s"]
    lips: Float[np.ndarray, " b"]
    targets: Mapping[str, Float[np.ndarray, "v 3"]]

    @property
    def heads(self) -> slice:
        """Slice of the bone heads in `points`."""
        end = len(self.points) - NUM_LANDMARKS
        return slice(end - len(self.bone_names), end)

    @property
    def landmarks(self) -> slice:
        """Slice of the 33 landmarks in `points`."""
        return slice(len(self.points) - NUM_LANDMARKS, len(self.points))

    def bone(self, name: str) -> int:
        """Index of a bone."""
        return self.bone_names.index(name)


@cache
def load() -> Mesh:
    """Loads the base mesh; cached per process."""
    with (
        resources.files("dreampose.synthetic").joinpath("data/mesh.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as data,
    ):
        points = data["points"].astype(np.float64)
        dense = np.zeros((len(points), len(data["bone_names"])))
        np.put_along_axis(dense, data["weight_bones"].astype(np.int64), data["weights"] / 255.0, 1)
        # Padding entries (bone 0, weight 0) may have overwritten a real weight of bone 0.
        for column in range(data["weights"].shape[1]):
            rows = np.flatnonzero(data["weights"][:, column])
            dense[rows, data["weight_bones"][rows, column]] = data["weights"][rows, column] / 255.0
        dense /= np.maximum(dense.sum(1, keepdims=True), 1e-9)
        return Mesh(
            points=points,
            bone_names=tuple(str(name) for name in data["bone_names"]),
            bone_parents=tuple(int(parent) for parent in data["bone_parents"]),
            weights=dense,
            body_faces=data["body_faces"].astype(np.int64),
            body_uv=data["body_uv"] / 65535.0,
            body_parts=data["body_parts"].astype(np.int64),
            eye_faces=data["eye_faces"].astype(np.int64),
            tights_faces=data["tights_faces"].astype(np.int64),
            tights_uv=data["tights_uv"] / 65535.0,
            tights_parts=data["tights_parts"].astype(np.int64),
            skirt_uv=data["skirt_uv"] / 65535.0,
            skirt_parts=data["skirt_parts"].astype(np.int64),
            lips=data["lips"] / 255.0,
            targets={
                str(name): moves * TARGET_STEP
                for name, moves in zip(data["target_names"], data["target_moves"], strict=True)
            },
        )


def shape(mesh: Mesh, targets: Mapping[str, float]) -> Float[np.ndarray, "v 3"]:
    """Points of the mesh in its rest pose, deformed by weighted shape targets."""
    points = mesh.points.copy()
    for name, weight in targets.items():
        points += weight * mesh.targets[name]
    return points


def bone_transforms(
    mesh: Mesh,
    heads: Float[np.ndarray, "bone 3"],
    rotations: Mapping[str, Float[np.ndarray, "3 3"]],
) -> Float[np.ndarray, "bone 3 4"]:
    """Affine transforms of the bones from the rest pose.

    Args:
        mesh: source of the bone hierarchy.
        heads: positions of the bone heads in the rest pose.
        rotations: local rotation by bone name, about the bone's head.
    """
    transforms = np.empty((len(heads), 4, 4))
    for index, name in enumerate(mesh.bone_names):
        turn = rotations.get(name)
        local = np.eye(4)
        if turn is not None:
            local[:3, :3] = turn
            local[:3, 3] = heads[index] - turn @ heads[index]
        parent = mesh.bone_parents[index]
        transforms[index] = local if parent < 0 else transforms[parent] @ local
    return transforms[:, :3]


def skin(
    points: Float[np.ndarray, "v 3"],
    normals: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    transforms: Float[np.ndarray, "bone 3 4"],
) -> tuple[Float[np.ndarray, "v 3"], Float[np.ndarray, "v 3"]]:
    """Linear blend skinning of points and unit normals."""
    blended = (weights @ transforms.reshape(len(transforms), 12)).reshape(-1, 3, 4)
    posed = np.einsum("vij,vj->vi", blended[..., :3], points) + blended[..., 3]
    return posed, unit(np.einsum("vij,vj->vi", blended[..., :3], normals))


def rotation(axis: str, degrees: float) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix about axis 'x', 'y' or 'z', right-handed."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cos
    matrix[first, second], matrix[second, first] = -sin, sin
    return matrix


def vertex_normals(
    points: Float[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    """Area-weighted unit normals."""
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    cross = np.cross(b - a, c - a)
    corners = faces.T.ravel()
    normals = np.stack(
        [np.bincount(corners, np.tile(cross[:, k], 3), len(points)) for k in range(3)], 1
    )
    return unit(normals)


def unit(vectors: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Vectors scaled to length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def laplacian_smooth(
    points: Float[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    *,
    rounds: int,
) -> Float[np.ndarray, "v 3"]:
    """`rounds` steps of Laplacian smoothing; boundary points stay fixed."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    pairs = np.sort(edges, 1)
    keys, inverse, counts = np.unique(
        pairs[:, 0] * len(points) + pairs[:, 1], return_inverse=True, return_counts=True
    )
    del keys
    held = np.zeros(len(points), bool)
    held[pairs[counts[inverse] == 1]] = True
    start, end = np.concatenate([edges, edges[:, ::-1]]).T
    degree = np.maximum(np.bincount(start, minlength=len(points)), 1)
    result = points.copy()
    for _ in range(rounds):
        means = np.stack(
            [np.bincount(start, result[end, k], len(points)) / degree for k in range(3)], 1
        )
        result = np.where(held[:, None], result, means)
    return result


class Surface(IntEnum):
    """Class of a pixel."""

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
    """A triangle mesh with skinning weights: the skin, the hair or a garment.

    A pixel is drawn where `keep`, interpolated over its triangle, is not negative. Hems and
    necklines are therefore smooth, and the skin under a garment is removed by the negated field.
    """

    surface: Surface
    points: Float[np.ndarray, "v 3"]
    """Rest pose."""
    weights: Float[np.ndarray, "v bone"]
    keep: Float[np.ndarray, " v"]
    faces: Int64[np.ndarray, "f 3"]
    parts: Int64[np.ndarray, " f"]
    """DensePose parts."""
    atlas: Float[np.ndarray, "f 3 2"]
    """UV of each face corner on the body atlas, in [0, 1]."""
    cloth: Float[np.ndarray, "f 3 2"]
    """Coordinates (around, down) in dm at which patterns are evaluated."""
    two_sided: bool = False

    def __post_init__(self) -> None:
        assert len(self.points) == len(self.weights) == len(self.keep)
        assert len(self.faces) == len(self.parts) == len(self.atlas) == len(self.cloth)


def trim(layer: Layer) -> Layer:
    """Drops the faces that `keep` hides completely, and then unused points."""
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
class BodyMeasurements:
    """Bone heads and heights (y) of a body in its rest pose, in dm."""

    heads: Float[np.ndarray, "bone 3"]
    names: tuple[str, ...]
    waist: float
    hips: float
    ankle: float
    floor: float

    def head(self, bone: str) -> Float[np.ndarray, "3"]:
        """Position of a bone's head."""
        return self.heads[self.names.index(bone)]


def measure(mesh: Mesh, points: Float[np.ndarray, "v 3"]) -> BodyMeasurements:
    """Measures a shaped body."""
    heads = points[mesh.heads]
    names = mesh.bone_names
    ankle = float(heads[names.index("LeftFoot")][1])
    low, spine = (float(heads[names.index(bone)][1]) for bone in ("LowerBack", "Spine"))
    return BodyMeasurements(
        heads=heads,
        names=names,
        waist=low + 0.45 * (spine - low),
        hips=float(heads[names.index("LeftUpLeg")][1]),
        ankle=ankle,
        floor=float(points[:NUM_BODY_POINTS, 1].min()),
    )


def along_arm(
    mesh: Mesh,
    measures: BodyMeasurements,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
) -> Float[np.ndarray, " v"]:
    """Coordinate along the arm: 0 shoulder, 1 elbow, 2 wrist; -0.4 on the rest of the body."""
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
    """Arc length in dm of face corners around an axis; 0 in front, continuous inside a face."""
    axis = (end - start) / np.linalg.norm(end - start)
    front = np.array([0.0, 0.0, 1.0]) - axis * axis[2]
    front /= np.linalg.norm(front)
    across = np.cross(front, axis) * (1 if axis[1] < 0 else -1)
    offset = points - start
    angle = np.arctan2(offset @ across, offset @ front)[faces]
    wrapped = np.ptp(angle, axis=1) > np.pi
    angle = np.where(wrapped[:, None] & (angle < 0), angle + 2 * np.pi, angle)
    return angle * radius
