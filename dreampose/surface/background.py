"""The background of a photo with the person taken out."""

import cv2
import numpy as np
from jaxtyping import UInt8

from dreampose.surface.warp import Layer

_MARGIN = 0.02
"""Width around the person that counts as person, over the picture's height."""


def background(photo: UInt8[np.ndarray, "H W 3"], body: np.ndarray) -> Layer:
    """What a photo shows beside the person, filled in smoothly behind them.

    Args:
        photo: RGB.
        body: where the person is, booleans (H W).

    Returns:
        The layer; its confidence is 1 where the photo shows it and falls to 0.2 behind the person.
    """
    height, _ = body.shape
    side = 2 * max(1, round(_MARGIN * height)) + 1
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    known = 1 - cv2.dilate(body.astype(np.uint8), shape).astype(np.float32)
    if not known.any():
        mean = np.full_like(photo, photo.reshape(-1, 3).mean(0))
        return Layer(picture=mean, confidence=np.full(body.shape, 0.2, np.float32))
    filled = _fill(photo.astype(np.float32) * known[..., None], known)
    soft = np.minimum(known, cv2.GaussianBlur(known, (0, 0), max(0.5, side / 6)))
    picture = photo * known[..., None] + filled * (1 - known[..., None])
    return Layer(
        picture=np.clip(np.rint(picture), 0, 255).astype(np.uint8),
        confidence=(0.2 + 0.8 * soft).astype(np.float32),
    )


def _fill(weighted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours (H W 3) everywhere from weighted ones, by averages over ever larger vicinities."""
    height, width = weights.shape
    if min(height, width) <= 2:
        mean = weighted.sum((0, 1)) / max(float(weights.sum()), 1e-6)
        return np.broadcast_to(mean, weighted.shape)
    small = (width + 1) // 2, (height + 1) // 2
    coarse = _fill(
        cv2.resize(weighted, small, interpolation=cv2.INTER_AREA),
        cv2.resize(weights, small, interpolation=cv2.INTER_AREA),
    )
    wide = cv2.resize(np.ascontiguousarray(coarse, np.float32), (width, height))
    share = np.clip(weights, 0, 1)[..., None]
    return weighted / np.maximum(weights, 1e-6)[..., None] * share + wide * (1 - share)
