"""Dressed person: all mesh layers joined, and their posing."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from dreampose.synthetic import clothing, hair, patterns
from dreampose.synthetic.clothing import SKIRT_COLUMNS, SKIRT_RINGS, drape_skirt, skirt_faces
from dreampose.synthetic.gait import Pose
from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import (
    BodyMeasurements,
    Layer,
    Mesh,
    Surface,
    bone_transforms,
    load,
    measure,
    rotation,
    shape,
    skin,
    trim,
    unit,
    vertex_normals,
)

LEG_BONES = ("UpLeg", "Leg")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Layers of a dressed person in the rest pose, joined into one mesh.

    The skirt's points come last; `pose` computes them.
    """

    mesh: Mesh
    person: Identity
    measures: BodyMeasurements
    clothes: clothing.Clothes
    anchors: Float[np.ndarray, "a 3"]
    anchor_weights: Float[np.ndarray, "a bone"]
    """Skinning weights of the anchors, which are bone heads and then landmarks."""
    points: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    weights: Float[np.ndarray, "v bone"]
    keep: Float[np.ndarray, " v"]
    under_skirt: Int64[np.ndarray, " legs"]
    """Indices of the points that a skirt covers."""
    skirt_points: slice
    faces: Int64[np.ndarray, "f 3"]
    surface: Int64[np.ndarray, " f"]
    two_sided: np.ndarray
    parts: Int64[np.ndarray, " f"]
    atlas: Float[np.ndarray, "f 3 2"]
    cloth: Float[np.ndarray, "f 3 2"]
    lips: Float[np.ndarray, " v"]
    soles: Int64[np.ndarray, " s"]
    """Indices of the points of the shoes."""
    arm_lift: float
    """Degrees by which the arms are lowered so that the hands hang beside the hips."""
    stance: float
    """Degrees between a resting leg and the vertical."""


@dataclass(frozen=True, kw_only=True)
class PosedScene:
    """A scene in one pose, in world coordinates; the floor is y = 0."""

    points: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    keep: Float[np.ndarray, " v"]
    landmarks: Float[np.ndarray, "33 3"]


def build(person: Identity) -> Scene:
    """Shapes the body, fits clothes and hair to it, and joins the layers."""
    mesh = load()
    points = shape(mesh, dict(person.targets))
    measures = measure(mesh, points)
    clothes = clothing.fit_clothes(mesh, person, points, measures)
    top = clothes.layers[0]
    top_points = top.points[np.unique(top.faces[(top.keep[top.faces] > 0).all(1)])]
    styled = hair.make_hair(mesh, person, points, measures, top_points)
    num_body = len(mesh.lips)
    covered = np.maximum(clothes.covered, styled.covered)
    body = Layer(
        surface=Surface.SKIN,
        points=points[:num_body],
        weights=mesh.weights[:num_body],
        keep=clothing.OVERLAP - covered,
        faces=mesh.body_faces,
        parts=mesh.body_parts,
        atlas=mesh.body_uv,
        cloth=np.zeros((len(mesh.body_faces), 3, 2)),
    )
    eyes = Layer(
        surface=Surface.EYES,
        points=points,
        weights=mesh.weights,
        keep=np.ones(len(points)),
        faces=mesh.eye_faces,
        parts=np.where(points[mesh.eye_faces][..., 0].mean(1) > 0, 24, 23),
        atlas=_eye_atlas(mesh, points),
        cloth=np.zeros((len(mesh.eye_faces), 3, 2)),
    )
    layers = [trim(layer) for layer in (body, eyes, *clothes.layers, *styled.layers)]
    if clothes.skirt is not None:
        layers.append(_skirt_layer(mesh, clothes.skirt))
    starts = np.cumsum([0, *(len(layer.points) for layer in layers)])
    used = np.flatnonzero((body.keep[body.faces] >= 0).any(1))
    body_used = np.unique(body.faces[used])
    lips = np.zeros(starts[-1])
    lips[: len(body_used)] = mesh.lips[body_used]
    weights = np.concatenate([layer.weights for layer in layers])
    legs = [mesh.bone(f"{s}{b}") for s in ("Left", "Right") for b in LEG_BONES]
    legs += [mesh.bone(name) for name in ("Hips", "LHipJoint", "RHipJoint", "LowerBack")]
    inner = np.concatenate(
        [
            np.full(len(layer.points), layer.surface in (Surface.SKIN, Surface.TOP, Surface.DRESS))
            for layer in layers
        ]
    )
    inner[starts[-2] if clothes.skirt is not None else starts[-1] :] = False
    surface = np.concatenate([np.full(len(layer.faces), int(layer.surface)) for layer in layers])
    joined = np.concatenate([layer.points for layer in layers])
    faces = np.concatenate([layer.faces + s for layer, s in zip(layers, starts[:-1], strict=True)])
    normals = np.concatenate([vertex_normals(layer.points, layer.faces) for layer in layers])
    stance = float(
        np.rad2deg(
            np.arctan2(
                measures.head("LeftFoot")[0] - measures.head("LeftUpLeg")[0],
                measures.head("LeftUpLeg")[1] - measures.head("LeftFoot")[1],
            )
        )
    )
    shoes = next(k for k, layer in enumerate(layers) if layer.surface == Surface.SHOES)
    return Scene(
        mesh=mesh,
        person=person,
        measures=measures,
        clothes=clothes,
        anchors=points[mesh.heads.start :],
        anchor_weights=mesh.weights[mesh.heads.start :],
        points=joined,
        normals=normals,
        weights=weights,
        keep=np.concatenate([layer.keep for layer in layers]),
        under_skirt=np.flatnonzero(inner & (weights[:, legs].sum(1) > 0.5)),
        skirt_points=slice(
            int(starts[-2]) if clothes.skirt is not None else int(starts[-1]), int(starts[-1])
        ),
        faces=faces,
        surface=surface,
        two_sided=np.concatenate([np.full(len(x.faces), x.two_sided) for x in layers]),
        parts=np.concatenate([layer.parts for layer in layers]),
        atlas=np.concatenate([layer.atlas for layer in layers]),
        cloth=np.concatenate([layer.cloth for layer in layers]),
        lips=lips,
        soles=np.arange(starts[shoes], starts[shoes + 1]),
        arm_lift=_arm_lift(measures, joined[inner]),
        stance=stance,
    )


def pose(scene: Scene, frame: Pose) -> PosedScene:
    """Poses all layers, drapes the skirt, applies the heading and puts the lower foot on y = 0."""
    transforms = bone_transforms(scene.mesh, scene.measures.heads, frame.rotations)
    points, normals = skin(scene.points, scene.normals, scene.weights, transforms)
    anchors, _ = skin(scene.anchors, np.zeros_like(scene.anchors), scene.anchor_weights, transforms)
    keep = scene.keep
    if scene.clothes.skirt is not None:
        cut = scene.clothes.skirt
        origin = scene.measures.head("Hips")
        hips = transforms[scene.mesh.bone("Hips")]
        centre = hips[:, :3] @ origin + hips[:, 3]
        local = (points[scene.under_skirt] - centre) @ hips[:, :3]
        down = np.linspace(0, 1, len(cut.heights))
        lag = frame.phase - 0.9
        sway = cut.swing * np.stack([down**2 * np.sin(lag), 0.4 * down**2 * np.cos(2 * lag)], 1)
        rings = drape_skirt(
            local, cut.heights, margin=0.1, flare=cut.flare, folds=cut.folds, sway=sway
        )
        cloth = rings.reshape(-1, 3) @ hips[:, :3].T + centre
        points[scene.skirt_points] = cloth
        shapes = vertex_normals(cloth, skirt_faces()).reshape(*rings.shape)
        # The first and the last column are the same points of the cloth.
        seam = unit(shapes[:, 0] + shapes[:, -1])
        shapes[:, 0] = shapes[:, -1] = seam
        normals[scene.skirt_points] = shapes.reshape(-1, 3)
        keep = keep.copy()
        covered = np.minimum(cut.heights[0] - local[:, 1], local[:, 1] - cut.heights[-1])
        keep[scene.under_skirt] = np.minimum(keep[scene.under_skirt], 0.45 - covered)
    turn = rotation("y", frame.yaw)
    points, anchors, normals = points @ turn.T, anchors @ turn.T, normals @ turn.T
    ground = points[scene.soles, 1].min()
    hips = anchors[0]
    move = np.array([frame.shift - hips[0] * 0.5, -ground, -hips[2] * 0.5])
    heads = len(scene.mesh.bone_names)
    return PosedScene(
        points=points + move, normals=normals, keep=keep, landmarks=anchors[heads:] + move
    )


def _skirt_layer(mesh: Mesh, cut: clothing.Skirt) -> Layer:
    """Layer of the skirt; `pose` computes its points."""
    faces = skirt_faces()
    rings, columns = SKIRT_RINGS, SKIRT_COLUMNS + 1
    angles = np.linspace(-np.pi, np.pi, columns)
    around = np.tile(angles * patterns.TRUNK_RADIUS, rings)
    down = np.repeat(cut.heights[0] - cut.heights, columns)
    # The stored UV are those of a skirt down to the ankles: a shorter one uses its upper rings.
    share = (cut.heights[0] - cut.heights[-1]) / FULL_SKIRT
    band = np.minimum((np.arange(rings - 1) + 0.5) * min(share, 1.0), rings - 1.5).astype(int)
    row, column = np.mgrid[: rings - 1, : columns - 1]
    first = band[row.ravel()] * (columns - 1) + column.ravel()
    source = np.concatenate([first, first + (rings - 1) * (columns - 1)])
    return Layer(
        surface=cut.surface,
        points=np.zeros((rings * columns, 3)),
        weights=np.zeros((rings * columns, len(mesh.bone_names))),
        keep=np.ones(rings * columns),
        faces=faces,
        parts=mesh.skirt_parts[source],
        atlas=mesh.skirt_uv[source],
        cloth=np.stack([around, down], 1)[faces],
        two_sided=True,
    )


FULL_SKIRT = 8.8
"""Length in dm of the skirt whose UV the mesh file holds."""


def _eye_atlas(mesh: Mesh, points: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "e 3 2"]:
    """UV of the eyes: those of the nearest eyelid."""
    body = points[: len(mesh.lips)]
    heads = np.flatnonzero(np.isin(mesh.body_parts, (23, 24)))
    centres = body[mesh.body_faces[heads]].mean(1)
    result = np.empty((len(mesh.eye_faces), 3, 2))
    middles = points[mesh.eye_faces].mean(1)
    for sign in (1, -1):
        own = np.sign(middles[:, 0]) == sign
        lid = np.linalg.norm(centres - middles[own].mean(0) - [0, 0.12, 0.1], axis=1).argmin()
        result[own] = mesh.body_uv[heads[lid]].mean(0)
    return result


def _arm_lift(measures: BodyMeasurements, inner: Float[np.ndarray, "n 3"]) -> float:
    """Degrees by which to lower the arms until the hands hang beside the hips."""
    shoulder, elbow = measures.head("LeftArm"), measures.head("LeftForeArm")
    wrist = measures.head("LeftHand")
    hip = np.abs(inner[np.abs(inner[:, 1] - measures.hips) < 0.6][:, 0])
    hip = hip[hip < wrist[0] - 1.2]
    clear = (np.quantile(hip, 0.98) if len(hip) else 1.7) + 0.42
    best = 20.0
    for lift in np.arange(20.0, 46.0, 1.0):
        turn = rotation("z", -lift)
        hand = shoulder + turn @ (wrist - shoulder)
        bend = shoulder + turn @ (elbow - shoulder)
        if hand[0] < clear or bend[0] < clear - 0.2:
            break
        best = float(lift)
    return best
