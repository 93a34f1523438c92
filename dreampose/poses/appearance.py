"""Colour statistics of a person's clothing, for recognition between frames."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.poses.landmarks import INDEX, body_height, point

_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
_GRID = 6
"""Rows and columns of the sampled points on the trunk."""
_MARGIN = 0.15
"""Share of the trunk left out at each side, where the background shows through."""
_SMALLEST_WIDTH = 0.03
"""Half-width in body heights over which a trunk seen from the side is sampled."""
_LIGHTNESS_WEIGHT = 0.5
"""Weight of lightness against the two colour axes: shade changes it first."""
_LIMBS = (
    (),
    (("shoulder", "elbow"), ("elbow", "wrist")),
    (("hip", "knee"), ("knee", "ankle")),
)
"""Bones along which the colours of left and right are measured: head, arms, legs."""
_SEEN = 0.6
"""Visibility from which a bone's colour is measured."""
_LEAST_WEIGHT = 0.05
"""A part that is less visible than this in either frame is not compared."""


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """Quantiles of the colours of trunk and thighs (CIE Lab, 8-bit steps), and their weights.

    Attributes:
        quantiles: part (trunk, thighs), quantile, channel.
        weights: of each part in [0, 1]: how far it is visible and inside the picture.
        sides: mean colours of the left and right of head, arms and legs; NaN where hidden.
    """

    quantiles: Float[np.ndarray, "2 5 3"]
    weights: Float[np.ndarray, "2"]
    sides: Float[np.ndarray, "3 2 3"]

    @classmethod
    def measure(
        cls, picture: UInt8[np.ndarray, "H W 3"], joints: Float[np.ndarray, "33 4"]
    ) -> "Appearance":
        """Measures the person at `joints` (pixels of the picture)."""
        size = float(body_height(joints[None])[0])
        regions = (_trunk_points(joints, size), _thigh_points(joints, size))
        names = (("shoulder", "hip"), ("hip", "knee"))
        quantiles = np.zeros((2, len(_QUANTILES), 3), np.float32)
        weights = np.zeros(2, np.float32)
        for part, (points, ends) in enumerate(zip(regions, names, strict=True)):
            colours, share = _sample(picture, points)
            visibility = min(
                float(np.mean([_visibility(joints, f"{side}_{end}") for side in ("left", "right")]))
                for end in ends
            )
            if share > 0.5:
                quantiles[part] = np.quantile(colours, _QUANTILES, axis=0)
                weights[part] = share * visibility
        return cls(quantiles=quantiles, weights=weights, sides=_side_colours(picture, joints))

    def distance(self, other: "Appearance") -> float:
        """Root mean square difference of the quantiles over the parts that both show, in Lab steps.

        Returns:
            0 where the two have no part in common.
        """
        weights = np.minimum(self.weights, other.weights)
        weights = np.where(weights < _LEAST_WEIGHT, 0, weights)
        if not weights.any():
            return 0.0
        scale = np.array([_LIGHTNESS_WEIGHT, 1, 1], np.float32)
        squares = (((self.quantiles - other.quantiles) * scale) ** 2).sum(axis=-1).mean(axis=-1)
        return float(np.sqrt((squares * weights).sum() / weights.sum()))

    def blend(self, other: "Appearance", share: float) -> "Appearance":
        """Moves this towards `other` by `share` in each part, as far as that part is visible."""
        step = np.where(self.weights < _LEAST_WEIGHT, 1.0, share) * (other.weights > _LEAST_WEIGHT)
        factor = step[:, None, None].astype(np.float32)
        return Appearance(
            quantiles=self.quantiles * (1 - factor) + other.quantiles * factor,
            weights=np.maximum(self.weights, other.weights * (step > 0)),
            sides=other.sides,
        )


def _visibility(joints: Float[np.ndarray, "33 4"], name: str) -> float:
    return float(joints[INDEX[name], 3])


def _trunk_points(joints: Float[np.ndarray, "33 4"], size: float) -> Float[np.ndarray, "n 2"]:
    down = np.linspace(_MARGIN, 1 - _MARGIN, _GRID)[:, None, None]
    across = np.linspace(_MARGIN, 1 - _MARGIN, _GRID)[None, :, None] * 2 - 1
    ends: list[Float[np.ndarray, "2 2"]] = []
    for name in ("shoulder", "hip"):
        half = (point(joints, f"left_{name}") - point(joints, f"right_{name}"))[:2] / 2
        length = float(np.hypot(*half))
        if length < _SMALLEST_WIDTH * size:
            half = np.array([_SMALLEST_WIDTH * size, 0.0])
        ends.append(np.stack([point(joints, f"middle_{name}")[:2], half]))
    middle = ends[0][0] * (1 - down) + ends[1][0] * down
    half = ends[0][1] * (1 - down) + ends[1][1] * down
    return (middle + half * across).reshape(-1, 2)


def _thigh_points(joints: Float[np.ndarray, "33 4"], size: float) -> Float[np.ndarray, "n 2"]:
    down = np.linspace(0.1, 0.8, 2 * _GRID)[:, None, None]
    aside = np.array([-0.015, 0.0, 0.015])[None, :, None] * size
    points: list[Float[np.ndarray, "n 2"]] = []
    for side in ("left", "right"):
        hip, knee = (point(joints, f"{side}_{name}")[:2] for name in ("hip", "knee"))
        axis = (knee - hip) / max(float(np.hypot(*(knee - hip))), 1e-6)
        normal = np.array([-axis[1], axis[0]])
        points.append((hip + (knee - hip) * down + normal * aside).reshape(-1, 2))
    return np.concatenate(points)


def _side_colours(
    picture: UInt8[np.ndarray, "H W 3"], joints: Float[np.ndarray, "33 4"]
) -> Float[np.ndarray, "3 2 3"]:
    colours = np.full((3, 2, 3), np.nan, np.float32)
    along = np.linspace(0.1, 0.9, 2 * _GRID)[:, None]
    for group, bones in enumerate(_LIMBS):
        for number, side in enumerate(("left", "right")):
            points = [
                point(joints, f"{side}_{a}")[:2] * (1 - along)
                + point(joints, f"{side}_{b}")[:2] * along
                for a, b in bones
                if min(_visibility(joints, f"{side}_{end}") for end in (a, b)) > _SEEN
            ]
            if points:
                found, share = _sample(picture, np.concatenate(points))
                if share > 0.5:
                    colours[group, number] = found.mean(axis=0)
    return colours


def _sample(
    picture: UInt8[np.ndarray, "H W 3"], points: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "m 3"], float]:
    """Lab colours at the points inside the picture, and the share of the points inside."""
    columns, rows = np.floor(points).astype(int).T
    inside = (columns >= 0) & (columns < picture.shape[1]) & (rows >= 0)
    inside &= rows < picture.shape[0]
    if not inside.any():
        return np.zeros((0, 3), np.float32), 0.0
    pixels = picture[rows[inside], columns[inside]]
    colours = cv2.cvtColor(pixels[None], cv2.COLOR_RGB2LAB)[0].astype(np.float32)
    return colours, float(inside.mean())
