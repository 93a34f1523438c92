"""The clothes of one person, cut and fitted to the resting body. Knows nothing of poses or pixels.

Tops, trousers and shoes are sheets over the mesh's garment helper, let out and smoothed as cloth;
the skirt is draped anew around every pose (see `skirt`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dreampose.synthetic import skirt
from dreampose.synthetic.identity import Identity
from dreampose.synthetic.layers import Layer, Measures, Surface, along_arm, around_axis
from dreampose.synthetic.mesh import Mesh, relax, vertex_normals
from dreampose.synthetic.patterns import TRUNK_RADIUS

ARM_RADIUS, LEG_RADIUS = 0.5, 0.8
"""Radii in dm with which angles around limbs become cloth widths."""
ASIDE = 60.0
"""Cloth width by which limbs lie beside the trunk, so that a print on the chest is there alone."""
OVERLAP = 0.3
"""How far in dm skin goes on under an edge of cloth."""


@dataclass(frozen=True, kw_only=True)
class Skirt:
    """What stays the same of a skirt from pose to pose; heights are in the frame of the hips."""

    surface: Surface
    heights: Float[np.ndarray, " ring"]
    flare: Float[np.ndarray, " ring"]
    folds: Float[np.ndarray, "ring column"]
    swing: float
    """How far in dm the hem lags behind the hips."""


@dataclass(frozen=True, kw_only=True)
class Clothes:
    """Garment layers, and how much of the body they cover."""

    layers: tuple[Layer, ...]
    skirt: Skirt | None
    covered: Float[np.ndarray, " b"]
    """For every body point the depth in dm under the nearest edge of cloth; negative is bare."""
    cloth_bottom: float
    """Cloth coordinate of the lowest hem, for gradients."""


def dress(
    mesh: Mesh, person: Identity, points: Float[np.ndarray, "v 3"], measures: Measures
) -> Clothes:
    """Cuts the person's outfit.

    Args:
        mesh: the base mesh.
        person: whose outfit.
        points: all points of the resting, shaped body.
        measures: of that body.
    """
    has_skirt = person.outfit in ("dress", "skirt")
    tucked = has_skirt
    top_surface = Surface.DRESS if person.outfit == "dress" else Surface.TOP
    top_hem = measures.waist - 0.45 if tucked else measures.hips + 0.4 - 0.4 * person.loose
    used, flat = np.unique(mesh.tights_faces, return_inverse=True)
    faces = flat.reshape(-1, 3)
    tights, weights = points[used], mesh.weights[used]
    body, body_weights = points[: len(mesh.lips)], mesh.weights[: len(mesh.lips)]
    coordinates = _cloth_coordinates(mesh, measures, tights, weights, faces)

    def sheet(
        surface: Surface, shaped: Float[np.ndarray, "v 3"], keep: Float[np.ndarray, " v"]
    ) -> Layer:
        return Layer(
            surface=surface,
            points=shaped,
            weights=weights,
            keep=keep,
            faces=faces,
            parts=mesh.tights_parts,
            atlas=mesh.tights_uv,
            cloth=coordinates,
            two_sided=surface != Surface.SHOES,
        )

    covered = _top_field(mesh, person, measures, body, body_weights, top_hem)
    sleeves = along_arm(mesh, measures, tights, weights)
    ease = 0.07 + 0.09 * person.loose
    ease_top = ease + np.where(sleeves < 0, 0.0, 0.05 * person.loose * np.clip(sleeves, 0, 1.5))
    top = _let_out(tights, faces, ease_top + 0.05 * (not tucked))
    layers = [sheet(top_surface, top, _top_field(mesh, person, measures, top, weights, top_hem))]
    cut = None
    if has_skirt:
        surface = Surface.DRESS if person.outfit == "dress" else Surface.BOTTOM
        cut = _skirt(person, measures, surface)
        cloth_bottom = measures.waist - (cut.heights[-1] + measures.head("Hips")[1])
    else:
        waist = top_hem + 0.35
        hem = measures.ankle + 0.12
        trousers = _let_out(tights, faces, np.full(len(tights), 0.06))
        trousers = _widen_legs(person, measures, trousers)
        legs = _leg_field(mesh, trousers, weights, waist, hem)
        layers.append(sheet(Surface.BOTTOM, trousers, legs))
        covered = np.maximum(covered, _leg_field(mesh, body, body_weights, waist, hem))
        cloth_bottom = measures.waist - hem
    shoes = _let_out(tights, faces, np.full(len(tights), 0.07), rounds=3)
    shoe_keep = _shoe_field(mesh, person, measures, shoes, weights)
    # A sole: nothing of the shoe curves up from the floor.
    sole = measures.floor - 0.12
    shoes[:, 1] = np.where(
        shoes[:, 1] < measures.floor + 0.22, sole + 0.25 * (shoes[:, 1] - sole), shoes[:, 1]
    )
    layers.append(sheet(Surface.SHOES, shoes, shoe_keep))
    covered = np.maximum(covered, _shoe_field(mesh, person, measures, body, body_weights))
    return Clothes(
        layers=tuple(layers), skirt=cut, covered=covered, cloth_bottom=float(cloth_bottom)
    )


def _let_out(
    points: Float[np.ndarray, "v 3"],
    faces: np.ndarray,
    ease: Float[np.ndarray, " v"],
    rounds: int = 8,
) -> Float[np.ndarray, "v 3"]:
    """Cloth that bridges hollows and lies at least `ease` outside of the points."""
    smooth = relax(points, faces, rounds=rounds)
    normals = vertex_normals(points, faces)
    gap = ((smooth - points) * normals).sum(1)
    return smooth + normals * np.maximum(0, ease - gap)[:, None]


def _top_field(
    mesh: Mesh,
    person: Identity,
    measures: Measures,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    hem: float,
) -> Float[np.ndarray, " v"]:
    """Depth in dm inside the top: from neckline, sleeve ends and hem."""
    arm = along_arm(mesh, measures, points, weights)
    shoulder = measures.head("LeftArm")
    length = float(np.linalg.norm(measures.head("LeftForeArm") - shoulder))
    x, y, z = points.T
    if person.sleeve > 0:
        sleeve = (person.sleeve - arm) * length
    else:
        edge = 0.92 * shoulder[0] + 0.3 * (shoulder[1] - y)
        sleeve = np.where((arm > -0.3) | (y > shoulder[1] - 1.4), edge - np.abs(x), 1.0)
    neck = measures.head("Neck")
    front = np.clip((z - neck[2]) / 0.5, 0, 1)
    collar = neck[1] + 0.18 - 0.12 * (z - neck[2])
    collar = collar - (0.35 + person.neckline) * front * np.exp(-((x / 0.85) ** 2))
    # Beyond the neck there is shoulder, which no neckline reaches.
    collar = collar + 3 * np.clip(np.abs(x) - 0.9, 0, None)
    return np.minimum(np.minimum(sleeve, collar - y), np.where(arm > 0.1, 1.0, y - hem))


def _leg_field(
    mesh: Mesh,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    waist: float,
    hem: float,
) -> Float[np.ndarray, " v"]:
    """Depth in dm inside the trousers: from waist and hem."""
    arms = [k for k, n in enumerate(mesh.bone_names) if "Arm" in n or "Hand" in n or "Thumb" in n]
    arms += [k for k, n in enumerate(mesh.bone_names) if "Finger" in n and k not in arms]
    on_arm = weights[:, arms].sum(1) > 0.3
    return np.where(on_arm, -1.0, np.minimum(waist - points[:, 1], points[:, 1] - hem))


def _shoe_field(
    mesh: Mesh,
    person: Identity,
    measures: Measures,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
) -> Float[np.ndarray, " v"]:
    """Depth in dm inside the shoe; pumps are cut low in front, trainers reach the ankle."""
    names = [f"{side}{bone}" for side in ("Left", "Right") for bone in ("Leg", "Foot", "ToeBase")]
    bones = [mesh.bone(name) for name in names]
    on_foot = weights[:, bones].sum(1) > 0.5
    ahead = points[:, 2] - measures.head("LeftFoot")[2]
    if person.outfit == "trousers":
        edge = measures.ankle + 0.25 - 0.05 * ahead
    else:
        edge = measures.ankle - 0.05 - 0.28 * np.clip(ahead, -0.6, 0.9)
    return np.where(on_foot, edge - points[:, 1], -1.0)


def _widen_legs(
    person: Identity, measures: Measures, points: Float[np.ndarray, "v 3"]
) -> Float[np.ndarray, "v 3"]:
    """Straight to wide trouser legs: the radius around each leg does not fall below a line."""
    result = points.copy()
    for side, sign in (("Left", 1), ("Right", -1)):
        knee, ankle = measures.head(f"{side}Leg"), measures.head(f"{side}Foot")
        own = (np.sign(points[:, 0]) == sign) & (points[:, 1] < knee[1] + 1.2)
        along = (points[own, 1] - knee[1]) / (ankle[1] - knee[1])
        axis = knee + along[:, None] * (ankle - knee)
        offset = (points[own] - axis) * [1, 0, 1]
        radius = np.linalg.norm(offset, axis=1)
        least = 0.55 + 0.28 * person.flare * np.clip(along + 0.3, 0, 1)
        least = least * np.clip(1 + along * 2.5, 0, 1)
        grow = np.maximum(radius, least) / np.maximum(radius, 1e-6)
        result[own] = axis + offset * grow[:, None] + (points[own] - axis) * [0, 1, 0]
    return result


def _skirt(person: Identity, measures: Measures, surface: Surface) -> Skirt:
    """The skirt's cut, in the frame of the hips."""
    random = np.random.default_rng([person.pattern_seed, 7])
    origin = measures.head("Hips")[1]
    top = measures.waist - origin
    bottom = measures.waist + person.hem * (measures.ankle - measures.waist) - origin
    heights = np.linspace(top, bottom, skirt.NUM_RINGS)
    down = np.linspace(0, 1, skirt.NUM_RINGS)
    length = top - bottom
    flare = 0.95 + (0.13 + 0.12 * person.flare) * length * down
    angles = np.linspace(-np.pi, np.pi, skirt.NUM_COLUMNS + 1)
    waves = int(random.integers(6, 10))
    depth = (0.012 + 0.03 * person.flare) * length
    folds = (1 + np.sin(waves * angles + random.uniform(0, 6))) / 2
    folds = depth * np.clip(down - 0.15, 0, 1)[:, None] * folds
    return Skirt(
        surface=surface,
        heights=heights,
        flare=flare,
        folds=folds,
        swing=0.05 + 0.1 * person.flare,
    )


def _cloth_coordinates(
    mesh: Mesh,
    measures: Measures,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    faces: np.ndarray,
) -> Float[np.ndarray, "f 3 2"]:
    """Cloth coordinates of face corners: around trunk, arm or leg, and down from the waist."""
    arm = along_arm(mesh, measures, points, weights)[faces].mean(1)
    side = np.where(points[faces, 0].mean(1) > 0, 1, -1)
    below = (points[faces, 1].mean(1) < measures.hips - 0.9) & (arm < 0)
    trunk = np.array([0.0, 0.0, measures.head("Spine")[2]])
    around = around_axis(points, faces, trunk, trunk - [0, 1, 0], TRUNK_RADIUS)
    down = (measures.waist - points[:, 1])[faces]
    for name, sign in (("Left", 1), ("Right", -1)):
        hip, ankle = measures.head(f"{name}UpLeg"), measures.head(f"{name}Foot")
        leg = around_axis(points, faces, hip, ankle, LEG_RADIUS) + ASIDE
        around = np.where((below & (side == sign))[:, None], leg, around)
        shoulder, elbow = measures.head(f"{name}Arm"), measures.head(f"{name}ForeArm")
        sleeve = around_axis(points, faces, shoulder, elbow, ARM_RADIUS) + ASIDE
        on_arm = ((arm > 0.1) & (side == sign))[:, None]
        around = np.where(on_arm, sleeve, around)
        axis = (elbow - shoulder) / np.linalg.norm(elbow - shoulder)
        far = ((points - shoulder) @ axis)[faces] + measures.waist - shoulder[1]
        down = np.where(on_arm, far, down)
    return np.stack([around, down], -1)
