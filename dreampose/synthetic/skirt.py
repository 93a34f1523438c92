"""The skirt: rings of cloth around the hips and legs of one pose. Knows nothing of pixels.

A ring is drawn around everything that it has to cover: in each direction its radius is the
support function (the farthest reach) of the legs at that height, so no stride pokes through.
"""

import numpy as np
from jaxtyping import Float, Int64

NUM_RINGS = 34
NUM_COLUMNS = 48
"""Columns around the body; the first is repeated at the end so that cloth widths do not wrap."""


def directions() -> Float[np.ndarray, "column 2"]:
    """Unit vectors (x, z) of the columns; column 0 and the last one point backwards."""
    angles = np.linspace(-np.pi, np.pi, NUM_COLUMNS + 1)
    return np.stack([np.sin(angles), np.cos(angles)], 1)


def faces() -> Int64[np.ndarray, "f 3"]:
    """Triangles over the grid of `NUM_RINGS` x `NUM_COLUMNS + 1` points, facing outwards."""
    ring, column = np.mgrid[: NUM_RINGS - 1, :NUM_COLUMNS]
    corner = (ring * (NUM_COLUMNS + 1) + column).ravel()
    below = corner + NUM_COLUMNS + 1
    first = np.stack([corner, below, corner + 1], 1)
    second = np.stack([corner + 1, below, below + 1], 1)
    return np.concatenate([first, second])


def drape(
    covered: Float[np.ndarray, "n 3"],
    heights: Float[np.ndarray, " ring"],
    *,
    margin: float,
    flare: Float[np.ndarray, " ring"],
    folds: Float[np.ndarray, "ring column"],
    sway: Float[np.ndarray, "ring 2"],
) -> Float[np.ndarray, "ring column 3"]:
    """Hangs the cloth around the points it covers.

    Args:
        covered: body and garment points in the frame of the hips, dm.
        heights: height of each ring in that frame, falling from the waist to the hem.
        margin: distance in dm between the cloth and what it covers.
        flare: least radius in dm of each ring (an A-line widens downwards).
        folds: radius added per ring and column, dm, not negative.
        sway: horizontal shift of each ring, dm; the ring still covers what it covered.
    """
    around = directions()
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
    # The cloth's middle follows the legs a little only: it hangs from the hips.
    centres = 0.35 * _smooth(centres) + 0.65 * centres[0] + sway
    radii = rings - centres @ around.T
    for ring in range(1, len(heights)):
        # Cloth hangs: below its widest point it falls nearly straight instead of clinging.
        radii[ring] = np.maximum(radii[ring], radii[ring - 1] * 0.985)
    # The waistband lies close; ease grows over the first rings below it.
    ease = np.clip(np.arange(len(heights)) / 5, 0.15, 1)[:, None]
    base = np.maximum(radii + margin * ease, flare[:, None])
    for _ in range(3):
        base += ease**2 * np.maximum(_smooth(base) - base, 0)
    radii = base + folds
    points = np.empty((len(heights), len(around), 3))
    points[..., [0, 2]] = centres[:, None] + radii[..., None] * around
    points[..., 1] = heights[:, None]
    return points


def _smooth(values: Float[np.ndarray, "ring k"]) -> Float[np.ndarray, "ring k"]:
    padded = np.concatenate([values[:1], values, values[-1:]])
    return (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
