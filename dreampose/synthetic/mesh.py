"""The body: its points, its shape and its skeleton. Knows nothing of clothes or pixels.

Lengths are decimetres; y is up, a person at rest looks along +z with the arms held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """The vendored mesh. The last points are bone heads and BlazePose landmarks, in that order."""

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
        """Where the bone heads are among the points."""
        end = len(self.points) - NUM_LANDMARKS
        return slice(end - len(self.bone_names), end)

    @property
    def landmarks(self) -> slice:
        """Where the 33 landmarks are among the points."""
        return slice(len(self.points) - NUM_LANDMARKS, len(self.points))

    def bone(self, name: str) -> int:
        """Index of a bone."""
        return self.bone_names.index(name)


@cache
def load() -> Mesh:
    """Reads the vendored mesh, once per process."""
    with (
        resources.files("dreampose.synthetic").joinpath("data/mesh.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as data,
    ):
        points = data["points"].astype(np.float64)
        dense = np.zeros((len(points), len(data["bone_names"])))
        np.put_along_axis(dense, data["weight_bones"].astype(np.int64), data["weights"] / 255.0, 1)
        # Entries past a point's last bone repeat bone 0 with weight 0 and may overwrite it.
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
    """All points of the person that the weighted shape targets make, at rest."""
    points = mesh.points.copy()
    for name, weight in targets.items():
        points += weight * mesh.targets[name]
    return points


def bone_transforms(
    mesh: Mesh,
    heads: Float[np.ndarray, "bone 3"],
    rotations: Mapping[str, Float[np.ndarray, "3 3"]],
) -> Float[np.ndarray, "bone 3 4"]:
    """Where each bone carries a point of the resting body; rotations are about the bone's head."""
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
    """Linear blend skinning of points and their normals."""
    blended = (weights @ transforms.reshape(len(transforms), 12)).reshape(-1, 3, 4)
    posed = np.einsum("vij,vj->vi", blended[..., :3], points) + blended[..., 3]
    return posed, unit(np.einsum("vij,vj->vi", blended[..., :3], normals))


def rotation(axis: str, degrees: float) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix about the axis 'x', 'y' or 'z'."""
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
    """Vectors scaled to length one; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def relax(
    points: Float[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    *,
    rounds: int,
) -> Float[np.ndarray, "v 3"]:
    """Points moved to the mean of their neighbours, `rounds` times; open edges hold their place."""
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
