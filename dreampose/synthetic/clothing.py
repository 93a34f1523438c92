"""Garments fitted to a body in its rest pose, and skirt draping.

Tops, trousers and shoes are offset and smoothed copies of the mesh's garment helper. Skirts are
draped around the legs of every pose: the radius of a ring in each direction is the support
function (the farthest extent) of the legs at its height, so legs never pass through the cloth.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from dreampose.synthetic.identity import Identity
from dreampose.synthetic.mesh import (
    BodyMeasurements,
    Layer,
    Mesh,
    Surface,
    along_arm,
    around_axis,
    laplacian_smooth,
    vertex_normals,
)
from dreampose.synthetic.patterns import TRUNK_RADIUS

ARM_RADIUS, LEG_RADIUS = 0.5, 0.8
"""Radii in dm that convert angles around limbs to cloth coordinates."""
ASIDE = 60.0
"""Offset in dm of the limbs' cloth coordinates, so that a print on the chest does not repeat."""
OVERLAP = 0.3
"""Depth in dm to which skin is kept under the edge of a garment."""
SKIRT_RINGS = 34
SKIRT_COLUMNS = 48
"""Columns around the body; the first one is repeated at the end, so coordinates do not wrap."""


@dataclass(frozen=True, kw_only=True)
class Skirt:
    """Pose-independent parameters of a skirt, in dm relative to the hips."""

    surface: Surface
    heights: Float[np.ndarray, " ring"]
    flare: Float[np.ndarray, " ring"]
    folds: Float[np.ndarray, "ring column"]
    swing: float
    """Distance by which the hem lags behind the hips."""


@dataclass(frozen=True, kw_only=True)
class Clothes:
    """Garment layers and the region of the body that they cover."""

    layers: tuple[Layer, ...]
    skirt: Skirt | None
    covered: Float[np.ndarray, " b"]
    """Depth in dm of every body point under the nearest garment edge; negative is uncovered."""
    cloth_bottom: float
    """Cloth coordinate of the lowest hem, where gradients end."""


def fit_clothes(
    mesh: Mesh, person: Identity, points: Float[np.ndarray, "v 3"], measures: BodyMeasurements
) -> Clothes:
    """Fits the person's outfit to the body.

    Args:
        mesh: the base mesh.
        person: source of the garment parameters.
        points: all points of the shaped body in its rest pose, dm.
        measures: measurements of that body.
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
    # Flatten the sole.
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
    """Smoothed surface that bridges hollows and lies at least `ease` dm outside of `points`."""
    smooth = laplacian_smooth(points, faces, rounds=rounds)
    normals = vertex_normals(points, faces)
    gap = ((smooth - points) * normals).sum(1)
    return smooth + normals * np.maximum(0, ease - gap)[:, None]


def _top_field(
    mesh: Mesh,
    person: Identity,
    measures: BodyMeasurements,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    hem: float,
) -> Float[np.ndarray, " v"]:
    """Signed distance in dm to the top's neckline, sleeve ends and hem; positive is inside."""
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
    # The neckline does not extend to the shoulders.
    collar = collar + 3 * np.clip(np.abs(x) - 0.9, 0, None)
    return np.minimum(np.minimum(sleeve, collar - y), np.where(arm > 0.1, 1.0, y - hem))


def _leg_field(
    mesh: Mesh,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    waist: float,
    hem: float,
) -> Float[np.ndarray, " v"]:
    """Signed distance in dm to the trousers' waist and hem; positive is inside."""
    arms = [k for k, n in enumerate(mesh.bone_names) if "Arm" in n or "Hand" in n or "Thumb" in n]
    arms += [k for k, n in enumerate(mesh.bone_names) if "Finger" in n and k not in arms]
    on_arm = weights[:, arms].sum(1) > 0.3
    return np.where(on_arm, -1.0, np.minimum(waist - points[:, 1], points[:, 1] - hem))


def _shoe_field(
    mesh: Mesh,
    person: Identity,
    measures: BodyMeasurements,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
) -> Float[np.ndarray, " v"]:
    """Signed distance in dm to the edge of pumps (low in front) or of trainers (ankle-high)."""
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
    person: Identity, measures: BodyMeasurements, points: Float[np.ndarray, "v 3"]
) -> Float[np.ndarray, "v 3"]:
    """Widens trouser legs to a minimum radius that grows linearly along the leg."""
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


def _skirt(person: Identity, measures: BodyMeasurements, surface: Surface) -> Skirt:
    """Parameters of the person's skirt."""
    random = np.random.default_rng([person.pattern_seed, 7])
    origin = measures.head("Hips")[1]
    top = measures.waist - origin
    bottom = measures.waist + person.hem * (measures.ankle - measures.waist) - origin
    heights = np.linspace(top, bottom, SKIRT_RINGS)
    down = np.linspace(0, 1, SKIRT_RINGS)
    length = top - bottom
    flare = 0.95 + (0.13 + 0.12 * person.flare) * length * down
    angles = np.linspace(-np.pi, np.pi, SKIRT_COLUMNS + 1)
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
    measures: BodyMeasurements,
    points: Float[np.ndarray, "v 3"],
    weights: Float[np.ndarray, "v bone"],
    faces: np.ndarray,
) -> Float[np.ndarray, "f 3 2"]:
    """Cloth coordinates (around, down) in dm of face corners, per trunk, arm or leg."""
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


def _column_directions() -> Float[np.ndarray, "column 2"]:
    """Unit vectors (x, z) of the columns; the first and the last one point backwards."""
    angles = np.linspace(-np.pi, np.pi, SKIRT_COLUMNS + 1)
    return np.stack([np.sin(angles), np.cos(angles)], 1)


def skirt_faces() -> Int64[np.ndarray, "f 3"]:
    """Outward-facing triangles of a grid of `SKIRT_RINGS` x `SKIRT_COLUMNS + 1` points."""
    ring, column = np.mgrid[: SKIRT_RINGS - 1, :SKIRT_COLUMNS]
    corner = (ring * (SKIRT_COLUMNS + 1) + column).ravel()
    below = corner + SKIRT_COLUMNS + 1
    first = np.stack([corner, below, corner + 1], 1)
    second = np.stack([corner + 1, below, below + 1], 1)
    return np.concatenate([first, second])


def drape_skirt(
    covered: Float[np.ndarray, "n 3"],
    heights: Float[np.ndarray, " ring"],
    *,
    margin: float,
    flare: Float[np.ndarray, " ring"],
    folds: Float[np.ndarray, "ring column"],
    sway: Float[np.ndarray, "ring 2"],
) -> Float[np.ndarray, "ring column 3"]:
    """Drapes a skirt around the points that it covers. Lengths are in dm.

    Args:
        covered: body and garment points relative to the hips.
        heights: height of each ring relative to the hips, decreasing from the waist to the hem.
        margin: distance between the cloth and the points.
        flare: minimum radius of each ring (an A-line widens downwards).
        folds: radius added per ring and column, not negative.
        sway: horizontal shift of each ring's centre; the points stay covered.

    Returns:
        Points of the grid that `skirt_faces` connects.
    """
    around = _column_directions()
    step = np.abs(np.diff(heights)).max()
    reach = covered[:, [0, 2]] @ around.T
    rings = np.empty((len(heights), len(around)))
    centres = np.zeros((len(heights), 2))
    for ring, height in enumerate(heights):
        near = np.abs(covered[:, 1] - height) < step * 1.1
        if near.any():
            low, high = covered[near][:, [0, 2]].min(0), covered[near][:, [0, 2]].max(0)
            centres[ring] = (low + high) / 2
            rings[ring] = reach[near].max(0)
        else:
            centres[ring] = centres[ring - 1]
            rings[ring] = rings[ring - 1]
    # The skirt hangs from the hips: its centre follows the legs only in part.
    centres = 0.35 * _smooth_rings(centres) + 0.65 * centres[0] + sway
    radii = rings - centres @ around.T
    for ring in range(1, len(heights)):
        # Below its widest point the cloth falls nearly straight instead of clinging.
        radii[ring] = np.maximum(radii[ring], radii[ring - 1] * 0.985)
    # The waistband fits closely; the ease grows over the first rings below it.
    ease = np.clip(np.arange(len(heights)) / 5, 0.15, 1)[:, None]
    base = np.maximum(radii + margin * ease, flare[:, None])
    for _ in range(3):
        base += ease**2 * np.maximum(_smooth_rings(base) - base, 0)
    radii = base + folds
    points = np.empty((len(heights), len(around), 3))
    points[..., [0, 2]] = centres[:, None] + radii[..., None] * around
    points[..., 1] = heights[:, None]
    return points


def _smooth_rings(values: Float[np.ndarray, "ring k"]) -> Float[np.ndarray, "ring k"]:
    padded = np.concatenate([values[:1], values, values[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
