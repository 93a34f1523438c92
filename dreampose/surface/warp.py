"""Photos warped into a target's surface map, with a soft confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.surface.maps import SurfaceMap
from dreampose.surface.texture import Texture, wrap

_REACH = 0.03
"""Distance from the photo's surface, over the body's extent, at which confidence has fallen to
0.6."""
_SURE = 0.4
"""Least confidence at which a margin counts as person."""


@dataclass(frozen=True, kw_only=True)
class Warp:
    """A picture made of the photos' pixels.

    Attributes:
        picture: RGB; the background is the layer that was given.
        confidence: in [0, 1]: how far a pixel of the body is backed by a photo, and 1 on the
            background where the layer shows what the photo saw.
        body: where the target's body is.
    """

    picture: UInt8[np.ndarray, "H W 3"]
    confidence: Float[np.ndarray, "H W"]
    body: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What lies behind the person: RGB, and in [0, 1] where the photo saw it."""

    picture: UInt8[np.ndarray, "H W 3"]
    confidence: Float[np.ndarray, "H W"]


def warp(textures: Sequence[Texture], surface: SurfaceMap, background: Layer) -> Warp:
    """The person of the photos in the pose of a surface map.

    Each pixel takes its colour from the place of the photo that shows the same place of the body,
    to a fraction of a pixel: from the nearest pixel of the photo it goes on along the photo's own
    derivative. Photos are blended by their quality there, which is fixed to the body, so that
    seams are soft and stay where they are from frame to frame.

    Args:
        textures: of the photos, at least one, of the map's kind.
        surface: of the target.
        background: of the target's size.
    """
    body = surface.body
    picture = background.picture.copy()
    confidence = background.confidence.copy()
    rows, columns = np.nonzero(body)
    if len(rows):
        charts = surface.charts[rows, columns].astype(np.intp) - 1
        places = surface.uv[rows, columns]
        total = np.zeros((len(rows), 3), np.float32)
        weights = np.zeros(len(rows), np.float32)
        missing = np.ones(len(rows), np.float32)
        votes = np.zeros(len(rows), np.float32)
        margin = surface.margin[rows, columns]
        for texture in textures:
            colours, sure, weight, near = _look_up(texture, charts, places, margin)
            votes += near / len(textures)
            total += colours * weight[:, None]
            weights += weight
            missing *= 1 - sure
        # Beyond a limb's silhouette the person is only where a photo shows them.
        kept = ~margin | (votes > _SURE)
        body = body.copy()
        body[rows, columns] = kept
        rows, columns = rows[kept], columns[kept]
        picture[rows, columns] = np.rint(total / weights[:, None])[kept]
        confidence[rows, columns] = 1 - missing[kept]
    return Warp(picture=picture, confidence=confidence, body=body)


def _look_up(
    texture: Texture, charts: np.ndarray, places: Float[np.ndarray, "n 2"], margin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colour (n 3), confidence, weight among photos and nearness (n) of places on a photo."""
    side = texture.index.shape[-1]
    cells = np.clip((places * side).astype(np.intp), 0, side - 1)
    pixels = texture.index[charts, cells[:, 0], cells[:, 1]]
    found = pixels >= 0
    pixels = np.where(found, pixels, 0)
    width = texture.photo.shape[1]
    y, x = np.divmod(pixels, width)
    away = wrap(texture.kind, places - texture.places[pixels])
    inverse = texture.inverse[pixels]
    move_x = inverse[:, 0, 0] * away[:, 0] + inverse[:, 0, 1] * away[:, 1]
    move_y = inverse[:, 1, 0] * away[:, 0] + inverse[:, 1, 1] * away[:, 1]
    move = np.maximum(np.hypot(move_x, move_y), 1e-6)
    # Never across the silhouette, where the photo shows the background.
    limit = np.minimum(1.0, np.clip(texture.room[pixels] - 1, 0, 1.5) / move)
    # Distance in pixels of a surface seen squarely, beyond what the nearest pixel itself covers.
    apart = np.hypot(away[:, 0], away[:, 1]) - 0.7 * texture.span[pixels]
    # In margins it decides where the person ends, so that it falls within a pixel or two.
    reach = np.where(margin, 1.0, _REACH * texture.extent)
    beyond = np.maximum(apart, 0) / texture.step[pixels] / reach
    near = np.where(found, np.exp(-0.5 * np.minimum(beyond, 20) ** 2), 0)
    sure = texture.quality[pixels] * near
    colours = _sample(texture.photo, x + move_x * limit, y + move_y * limit)
    # What no pixel shows takes the colour of its vicinity on the body.
    share = np.clip(4 * sure - 0.2, 0, 1).astype(np.float32)[:, None]
    colours = colours * share + texture.calm[pixels] * (1 - share)
    weight = sure**2 * texture.density[pixels] + 1e-6 * found / (1 + np.minimum(beyond, 1e3))
    return colours, sure.astype(np.float32), weight.astype(np.float32) + 1e-12, near


def _sample(photo: UInt8[np.ndarray, "H W 3"], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear colours (n 3) at places of a photo, in 8 bits."""
    # OpenCV limits a map's side to 32767: the list of places is folded into rows.
    rows = -(-len(x) // 512)
    maps = [
        np.pad(m.astype(np.float32), (0, rows * 512 - len(m))).reshape(rows, 512) for m in (x, y)
    ]
    found = cv2.remap(photo, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape(-1, 3)[: len(x)].astype(np.float32)
