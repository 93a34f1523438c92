"""Which part and atlas place each face shows, found once for the vendored mesh.

Knows nothing of files, persons or pixels.
"""

import numpy as np

from dreampose.synthetic.mesh import vertex_normals


def body_parts(
    points: np.ndarray, faces: np.ndarray, weights: np.ndarray, names: list[str], heads: np.ndarray
) -> np.ndarray:
    """The DensePose part of every body face: 1..24 in DensePose's order."""
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


def on_atlas(
    points: np.ndarray,
    faces: np.ndarray,
    body: np.ndarray,
    body_faces: np.ndarray,
    body_uv: np.ndarray,
    body_parts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Part of every face, and atlas place of every face corner, of cloth over the body.

    The face's centre picks the body triangle; its corners then take the nearest place on the body
    that lies on the same side of every atlas seam, so no face is smeared across the atlas.
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

    home = nearest(points[faces].mean(1), 2)[:, 0]
    parts = body_parts[home]
    near = nearest(points, 60)
    uv = np.empty((len(faces), 3, 2))
    for corner in range(3):
        candidates = near[faces[:, corner]]
        place = points[faces[:, corner]][:, None]
        gap = np.linalg.norm(centres[candidates] - place, axis=-1)
        jump = np.linalg.norm(uv_centres[candidates] - uv_centres[home][:, None], axis=-1)
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
