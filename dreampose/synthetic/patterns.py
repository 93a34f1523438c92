"""Procedural cloth patterns."""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from dreampose.synthetic.identity import PATTERNS

TRUNK_RADIUS = 1.5
"""Radius in dm that converts angles around trunk and skirt to cloth coordinates."""
Weights = Float32[np.ndarray, " n"] | Float64[np.ndarray, " n"]
Pattern = Callable[[Weights, Weights], Weights]
"""Maps cloth coordinates (around, down) in dm to the share of the accent colour, in [0, 1]."""


def make(kind: str, seed: int, *, bottom: float) -> Pattern:
    """Creates a pattern with random parameters.

    Args:
        kind: one of `PATTERNS`.
        seed: seed of the scales, offsets and the logo.
        bottom: cloth coordinate in dm of the lowest hem, where a gradient ends.
    """
    assert kind in PATTERNS
    random = np.random.default_rng([seed, 11])
    size = float(random.uniform(0.75, 1.3))
    wide = _whole(size)
    share = float(random.uniform(0.35, 0.55))
    shift = float(random.uniform(0, 1))
    upright = bool(random.random() < 0.35)
    if kind == "plain":
        return lambda around, _: np.zeros_like(around)
    if kind == "stripes":
        if upright:
            return lambda around, _: _band(around / wide + shift, share, wide)
        return lambda _, down: _band(down / size + shift, share, size)
    if kind == "plaid":
        thin = 0.3 * share
        wide = _whole(1.2 * size)

        def plaid(around: Weights, down: Weights) -> Weights:
            a, b = around / wide + 0.25, down / (1.2 * size) + shift
            broad = _band(a, share, size) + _band(b, share, size)
            fine = _band(a + 0.5, thin, size) + _band(b + 0.5, thin, size)
            return np.clip(0.5 * broad + 0.25 * fine, 0, 1)

        return plaid
    if kind == "dots":
        radius = 0.42 * np.sqrt(share)

        def dots(around: Weights, down: Weights) -> Weights:
            row = np.floor(down / size + shift)
            a = around / wide + 0.5 * (row % 2)
            away = np.hypot(a - np.floor(a) - 0.5, down / size + shift - row - 0.5)
            return np.clip((radius - away) * size / 0.06 + 0.5, 0, 1)

        return dots
    if kind == "logo":
        return _logo(random)
    start = float(random.uniform(-3.5, -1))
    return lambda _, down: np.clip((down - start) / max(bottom - start, 1.0), 0, 1)


def _whole(period: float) -> float:
    """Nearest period that divides the circumference of the trunk."""
    around = 2 * np.pi * TRUNK_RADIUS
    return float(around / max(1, round(around / period)))


def _band(phase: Weights, share: float, period: float) -> Weights:
    """Periodic bands with a duty cycle of `share` and edges that are 0.05 dm soft."""
    away = np.abs(phase - np.floor(phase) - 0.5)
    return np.clip((share / 2 - away) * period / 0.05 + 0.5, 0, 1)


def _logo(random: np.random.Generator) -> Pattern:
    """A print on the chest: a disc or rectangle with a letter cut out, or a star."""
    side = 96
    picture = np.zeros((side, side), np.uint8)
    shape = int(random.integers(3))
    middle = (side // 2, side // 2)
    if shape == 0:
        cv2.circle(picture, middle, 44, 255, -1, cv2.LINE_AA)
    elif shape == 1:
        cv2.rectangle(picture, (4, 12), (92, 84), 255, -1)
    else:
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 24, 46)
        star = np.stack([48 + radii * np.sin(angles), 48 - radii * np.cos(angles)], 1)
        cv2.fillPoly(picture, [star.astype(np.int32)], 255, cv2.LINE_AA)
    if shape < 2:
        letter = chr(ord("A") + int(random.integers(26)))
        (wide, tall), _ = cv2.getTextSize(letter, cv2.FONT_HERSHEY_DUPLEX, 1.7, 7)
        place = ((side - wide) // 2, (side + tall) // 2)
        cv2.putText(picture, letter, place, cv2.FONT_HERSHEY_DUPLEX, 1.7, 0, 7, cv2.LINE_AA)
    soft = picture.astype(np.float32) / 255
    reach = float(random.uniform(0.6, 0.85))
    height = -1.95

    def logo(around: Weights, down: Weights) -> Weights:
        x = np.asarray((around / reach + 1) * side / 2 - 0.5, np.float32)
        y = np.asarray(((down - height) / reach + 1) * side / 2 - 0.5, np.float32)
        if not len(x):
            return np.zeros_like(around)
        # OpenCV limits the side of a map to 32767: reshape the list of pixels to rows of 1024.
        rows = -(-len(x) // 1024)
        maps = [np.pad(m, (0, rows * 1024 - len(m))).reshape(rows, 1024) for m in (x, y)]
        found = cv2.remap(soft, maps[0], maps[1], cv2.INTER_LINEAR, borderValue=0)
        return found.reshape(-1)[: len(x)].astype(around.dtype)

    return logo
