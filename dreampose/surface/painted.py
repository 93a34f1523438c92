"""Surface coordinates of painted limbs."""

import numpy as np
from jaxtyping import Float

from dreampose.poses.landmarks import body_height, steady
from dreampose.poses.paint import STEADY_RADIUS, limbs
from dreampose.surface.maps import AROUND, NUM_LIMBS, SurfaceMap

_MARGIN = 0.9
"""Width of the margins around limbs, in radii: clothes and hair reach beyond limbs."""


def body_sizes(joints: Float[np.ndarray, "t k 4"]) -> Float[np.ndarray, " t"]:
    """Standing height in pixels in each frame, held steady over time."""
    return steady(body_height(joints), min(STEADY_RADIUS, len(joints) - 1))


def paint(joints: Float[np.ndarray, "k 4"], size: float, height: int, width: int) -> SurfaceMap:
    """Surface map of a body in one frame.

    The charts are the limbs in the order in which `poses.paint` draws them. Their first coordinate
    runs along the limb, the second around it: 0.5 is the front of the body, and `AROUND` one turn.
    Each limb has two charts more for the margins beyond its silhouette, on the body's right and
    left, where the second coordinate is the distance, within less than half a turn.

    Args:
        joints: the 33 points in pixels of the map: x, y, depth, visibility.
        size: standing height in pixels, see `body_sizes`.
        height: of the map in pixels.
        width: of the map in pixels.
    """
    charts = np.zeros((height, width), np.uint8)
    uv = np.zeros((height, width, 2), np.float32)
    depth = np.full((height, width), np.inf, np.float32)
    for number, limb in enumerate(limbs(joints, size), 1):
        seen = limb.cover(height, width, margin=_MARGIN)
        if seen is None:
            continue
        # Margins lie behind every limb, the nearest limb's before the others'.
        order = np.where(seen.inside, seen.depth, 1e4 + seen.distance * max(limb.radii))
        shown = (seen.distance < 1 + _MARGIN) & (order < depth[seen.area])
        around = np.arctan2(seen.turned, seen.ahead) * (AROUND / (2 * np.pi)) + 0.5
        outside = 0.02 + 0.32 * np.clip((seen.distance - 1) / _MARGIN, 0, 1)
        caps = limb.radii if limb.caps is None else limb.caps
        length = float(np.linalg.norm(limb.end - limb.start))
        # Along the limb in pixels, caps included, so that no stretch of it looks turned away.
        along = (
            caps[0] * (1 + np.clip(seen.endways, -1, 0))
            + length * seen.along
            + caps[1] * np.clip(seen.endways, 0, 1)
        ) / (caps[0] + length + caps[1])
        place = np.stack([along, np.where(seen.inside, around, outside)], -1)
        margin = NUM_LIMBS + 2 * number - (seen.turned < 0)
        chart = np.where(seen.inside, number, margin).astype(np.uint8)
        uv[seen.area] = np.where(shown[..., None], place, uv[seen.area])
        charts[seen.area] = np.where(shown, chart, charts[seen.area])
        depth[seen.area] = np.where(shown, order, depth[seen.area])
    return SurfaceMap(charts=charts, uv=uv, kind="painted")
