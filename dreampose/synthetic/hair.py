"""Hair geometry: a shell over the scalp, hanging hair or a bun."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import (
    BodyMeasurements,
    Layer,
    Mesh,
    Surface,
    laplacian_smooth,
    vertex_normals,
)

HEAD_LEFT, HEAD_RIGHT, BACK = 24, 23, 1


@dataclass(frozen=True, kw_only=True)
class Hair:
    """Hair layers and the region of the body that they cover."""

    layers: tuple[Layer, ...]
    covered: Float[np.ndarray, " b"]
    """Depth in dm of every body point behind the hairline; negative is uncovered."""


def make_hair(
    mesh: Mesh,
    person: Identity,
    points: Float[np.ndarray, "v 3"],
    measures: BodyMeasurements,
    clothes: Float[np.ndarray, "c 3"],
) -> Hair:
    """Builds the person's hair.

    Args:
        mesh: the base mesh.
        person: source of the hair style.
        points: all points of the shaped body in its rest pose, dm.
        measures: measurements of that body.
        clothes: points of the top, over which long hair falls.
    """
    body = points[: len(mesh.lips)]
    marks = points[mesh.landmarks]
    eyes, ears = (marks[2] + marks[5]) / 2, (marks[7] + marks[8]) / 2
    on_head = body[mesh.body_faces][..., 1].mean(1) > measures.head("Neck1")[1] - 0.4
    faces = mesh.body_faces[on_head]
    used, flat = np.unique(faces, return_inverse=True)
    faces = flat.reshape(-1, 3)
    head = body[used]
    field = np.full(len(body), -1.0)
    field[used] = _scalp_field(person, head, eyes, ears)
    smooth = laplacian_smooth(head, faces, rounds=25)
    thick = {"short": 0.12, "bob": 0.26, "long": 0.24, "bun": 0.13}[person.hair_style]
    normals = vertex_normals(smooth, faces)
    lift = np.maximum(0, ((head - smooth) * normals).sum(1))
    is_ear = np.minimum(*(np.linalg.norm(head - marks[k], axis=1) for k in (7, 8))) < 0.5
    # Near the ears the shell is close to the skin, so the skin below it is kept.
    under = field.copy()
    under[used] = np.where(is_ear, np.minimum(under[used], 0.1), under[used])
    lift = np.where(is_ear, np.minimum(lift, 0.05), lift)
    body_rise = 0.03 + thick * np.clip(field[used] / 0.8, 0, 1) ** 0.7
    crown = np.clip((head[:, 1] - eyes[1]) / 1.0, 0, 1)
    shell = smooth + normals * (lift + body_rise * (0.8 + 0.25 * crown))[:, None]
    layers = [
        Layer(
            surface=Surface.HAIR,
            points=shell,
            weights=mesh.weights[used],
            keep=field[used],
            faces=faces,
            parts=mesh.body_parts[on_head],
            atlas=mesh.body_uv[on_head],
            cloth=np.stack([shell[:, 0], shell[:, 1]], -1)[faces],
            two_sided=True,
        )
    ]
    if person.hair_style in ("bob", "long"):
        cover = np.concatenate([shell, clothes, body])
        layers.append(_curtain(mesh, person, measures, cover, body, eyes, ears))
    if person.hair_style == "bun":
        layers.append(_bun(mesh, shell, body, eyes))
    return Hair(layers=tuple(layers), covered=under)


def _scalp_field(
    person: Identity,
    head: Float[np.ndarray, "v 3"],
    eyes: Float[np.ndarray, "3"],
    ears: Float[np.ndarray, "3"],
) -> Float[np.ndarray, " v"]:
    """Depth in dm behind the hairline (forehead, temples, ears, nape); negative is in front."""
    x, y, z = head.T
    nape = ears[1] - {"short": 0.45, "bob": 0.9, "long": 0.9, "bun": 0.55}[person.hair_style]
    forehead = y - (eyes[1] + 0.72 - 0.25 * np.abs(x))
    temples = (ears[2] + 0.32 - z) + 0.35 * np.clip(y - eyes[1], -0.6, 1)
    field = np.minimum(np.maximum(forehead, temples), y - nape)
    if person.hair_style in ("short", "bun"):
        beside = np.array([np.abs(x).max(), ears[1], ears[2]])
        mirrored = np.stack([np.abs(x), y, z], 1)
        away = np.linalg.norm((mirrored - beside) * [0.55, 1, 1], axis=1)
        field = np.minimum(field, away - 0.36)
        side = np.abs(x) > 0.35
        field = np.where(side, np.minimum(field, y - (ears[1] - 0.35)), field)
    return field


def _curtain(
    mesh: Mesh,
    person: Identity,
    measures: BodyMeasurements,
    cover: Float[np.ndarray, "n 3"],
    body: Float[np.ndarray, "b 3"],
    eyes: Float[np.ndarray, "3"],
    ears: Float[np.ndarray, "3"],
) -> Layer:
    """Hair that hangs from the back of the head over the points of `cover`."""
    long = person.hair_style == "long"
    top = eyes[1] + 0.35
    bottom = measures.head("Neck")[1] - (1.3 if long else 0.05)
    num_rings, num_columns = (18, 28) if long else (12, 28)
    limit = np.deg2rad(118)
    angles = np.linspace(-limit, limit, num_columns)
    around = np.stack([np.sin(angles), -np.cos(angles)], 1)
    centre = np.array([0.0, ears[2]])
    heights = np.linspace(top, bottom, num_rings)
    step = heights[0] - heights[1]
    inside = cover[(np.abs(cover[:, 0]) < 1.0) & (cover[:, 2] < ears[2] + 0.6)]
    reach = (inside[:, [0, 2]] - centre) @ around.T
    radii = np.empty((num_rings, num_columns))
    for ring, height in enumerate(heights):
        near = np.abs(inside[:, 1] - height) < step
        radii[ring] = np.maximum(reach[near].max(0), 0.3)
        if ring:
            # Below its widest ring the hair narrows slowly.
            radii[ring] = np.maximum(radii[ring], radii[ring - 1] - 0.03)
    radii = np.minimum(radii, 1.15 / np.maximum(np.abs(around[:, 0]), 0.35)) + 0.05
    strands = 0.03 * np.sin(9 * angles + 1.3) * np.linspace(0, 1, num_rings)[:, None]
    points = np.empty((num_rings, num_columns, 3))
    points[..., [0, 2]] = centre + (radii + strands)[..., None] * around
    points[..., 1] = heights[:, None]
    points = points.reshape(-1, 3)
    ring, column = np.mgrid[: num_rings - 1, : num_columns - 1]
    corner = (ring * num_columns + column).ravel()
    below = corner + num_columns
    faces = np.concatenate(
        [
            np.stack([corner, corner + 1, below], 1),
            np.stack([corner + 1, below + 1, below], 1),
        ]
    )
    weights = np.zeros((len(points), len(mesh.bone_names)))
    hang = np.clip((points[:, 1] - (measures.head("Neck")[1] - 0.2)) / 1.0, 0, 1)
    weights[:, mesh.bone("Head")] = hang
    weights[:, mesh.bone("Spine1")] = 1 - hang
    spread = np.abs(np.tile(angles, num_rings))
    width = np.clip((points[:, 1] - (measures.head("Neck")[1] - 0.1)) / 0.8, 0, 1)
    keep = np.deg2rad(78) + width * (limit - np.deg2rad(78)) - spread
    parts, atlas = _nearest_body(mesh, body, points, faces)
    return Layer(
        surface=Surface.HAIR,
        points=points,
        weights=weights,
        keep=keep,
        faces=faces,
        parts=parts,
        atlas=atlas,
        cloth=np.stack([np.tile(angles, num_rings), points[:, 1]], -1)[faces],
        two_sided=True,
    )


def _bun(
    mesh: Mesh,
    shell: Float[np.ndarray, "v 3"],
    body: Float[np.ndarray, "b 3"],
    eyes: Float[np.ndarray, "3"],
) -> Layer:
    """An ellipsoid at the back of the crown."""
    near = shell[np.abs(shell[:, 1] - (eyes[1] + 0.55)) < 0.25]
    middle = np.array([0.0, eyes[1] + 0.6, near[:, 2].min() - 0.15])
    rows, columns = 10, 16
    polar = np.linspace(0, np.pi, rows)[:, None]
    turn = np.linspace(0, 2 * np.pi, columns + 1)[None]
    sphere = np.stack(
        [np.sin(polar) * np.sin(turn), np.cos(polar) + 0 * turn, np.sin(polar) * np.cos(turn)], -1
    )
    points = (middle + sphere * [0.46, 0.42, 0.42]).reshape(-1, 3)
    row, column = np.mgrid[: rows - 1, :columns]
    corner = (row * (columns + 1) + column).ravel()
    below = corner + columns + 1
    faces = np.concatenate(
        [np.stack([corner, below, corner + 1], 1), np.stack([corner + 1, below, below + 1], 1)]
    )
    weights = np.zeros((len(points), len(mesh.bone_names)))
    weights[:, mesh.bone("Head")] = 1
    parts, atlas = _nearest_body(mesh, body, points, faces)
    return Layer(
        surface=Surface.HAIR,
        points=points,
        weights=weights,
        keep=np.ones(len(points)),
        faces=faces,
        parts=parts,
        atlas=atlas,
        cloth=np.stack([points[:, 0], points[:, 1]], -1)[faces],
    )


def _nearest_body(
    mesh: Mesh,
    body: Float[np.ndarray, "b 3"],
    points: Float[np.ndarray, "v 3"],
    faces: np.ndarray,
) -> tuple[np.ndarray, Float[np.ndarray, "f 3 2"]]:
    """DensePose part and UV of hair faces, from the nearest face of the head or back."""
    under = np.flatnonzero(np.isin(mesh.body_parts, (HEAD_LEFT, HEAD_RIGHT, BACK)))
    under = under[body[mesh.body_faces[under]][..., 2].mean(1) < 0.5 * body[:, 2].max()]
    centres = body[mesh.body_faces[under]].mean(1)
    middle = points[faces].mean(1)
    distance = (centres**2).sum(1)[None] - 2 * middle @ centres.T
    found = under[distance.argmin(1)]
    atlas = np.repeat(mesh.body_uv[found].mean(1)[:, None], 3, 1)
    return mesh.body_parts[found], atlas
