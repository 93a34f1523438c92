"""Texture of a photo on the body surface, with its quality."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int32, UInt8

from dreampose.surface.maps import AROUND, NUM_LIMBS, SurfaceMap

_GRID = {"atlas": 512, "parts": 96, "painted": 96}
"""Cells of a chart's side in the index."""
_JUMP = 5.0
"""Neighbouring pixels further apart on a chart than this many usual steps are not connected."""
_UNTRUSTED = 0.01
"""Width of the rim of painted limbs that is not trusted, over the body's extent."""
_RIM = 1.4
"""Pixels from the silhouette over which quality rises to 1: edge pixels carry the background."""


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A photo and where on it each place of the body is found.

    Attributes:
        photo: RGB.
        kind: of the surface map.
        index: for each chart and cell the nearest usable pixel (row * width + column), or -1.
        places: place on its chart of every pixel.
        inverse: pixels per unit of place, d(x, y) / d(u, v), of every pixel.
        span: largest extent on the chart of every pixel.
        step: extent on the chart that a pixel would have if it were seen squarely.
        room: pixels from every pixel to the nearest that is not the body's.
        quality: in [0, 1] of every pixel: low near silhouettes and where seen at a flat angle.
        density: pixels per area of the chart, of every pixel; for comparing photos.
        calm: the body's own colours, averaged over a vicinity; for places that no pixel shows.
        extent: square root of the body's area in pixels.
    """

    photo: UInt8[np.ndarray, "H W 3"]
    kind: str
    index: Int32[np.ndarray, "n g g"]
    places: Float[np.ndarray, "p 2"]
    inverse: Float[np.ndarray, "p 2 2"]
    span: Float[np.ndarray, " p"]
    step: Float[np.ndarray, " p"]
    room: Float[np.ndarray, " p"]
    quality: Float[np.ndarray, " p"]
    density: Float[np.ndarray, " p"]
    calm: Float[np.ndarray, "p 3"]
    extent: float


def build(
    photo: UInt8[np.ndarray, "H W 3"], surface: SurfaceMap, mask: np.ndarray | None = None
) -> Texture:
    """Indexes a photo by its surface map.

    Args:
        photo: RGB.
        surface: of the photo's size.
        mask: where the photo shows the person, booleans (H W); by default where the map has limbs.
    """
    height, width = surface.charts.shape
    person = surface.body & ~surface.margin if mask is None else surface.body & mask
    assert photo.shape == (height, width, 3)
    steps, linked = _derivatives(surface)
    (ux, vx), (uy, vy) = (np.moveaxis(step, -1, 0) for step in steps)
    determinant = ux * vy - uy * vx
    # Where the chart's lines fall together there is no way back to pixels: no steps there.
    size = ux**2 + vx**2 + uy**2 + vy**2
    sound = linked & (np.abs(determinant) > 0.02 * size)
    safe = np.where(sound, determinant, 1.0)
    adjugate = np.stack([np.stack([vy, -uy], -1), np.stack([-vx, ux], -1)], -2)
    inverse = adjugate / safe[..., None, None]
    inverse = np.where(sound[..., None, None], inverse, 0).astype(np.float32)
    body = person
    whole = cv2.copyMakeBorder(body.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    inner = cv2.distanceTransform(whole, cv2.DIST_L2, 3)[1:-1, 1:-1]
    extent = float(np.sqrt(max(1, np.count_nonzero(body))))
    if surface.kind == "painted":
        # Limbs and segmentations are less exact than surfaces that a network reads.
        inner = np.maximum(inner - _UNTRUSTED * extent, 0).astype(np.float32)
    rim = np.clip((inner - 0.9) / _RIM, 0, 1)
    area = np.abs(determinant)
    facing, step = _facing(surface, area, size)
    facing = np.where(linked, facing, 0).astype(np.float32)
    # Single pixels where a chart is torn are no worse than those around them.
    facing = cv2.morphologyEx(facing, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    quality = np.where(body, rim * facing, 0)
    usable = body & linked & (inner > 1.2)
    # Parts too thin to have an inside keep their edge pixels.
    side = 3 + 2 * (round(_UNTRUSTED * extent) + 1 if surface.kind == "painted" else 0)
    near = cv2.dilate(usable.astype(np.uint8), np.ones((side, side), np.uint8))
    lonely = body & (near == 0)
    return Texture(
        photo=photo,
        kind=surface.kind,
        index=_index(surface, usable | lonely),
        places=surface.uv.reshape(-1, 2),
        inverse=inverse.reshape(-1, 2, 2),
        span=np.sqrt(size).reshape(-1).astype(np.float32),
        step=np.maximum(step, 1e-6).reshape(-1).astype(np.float32),
        room=inner.reshape(-1),
        quality=quality.reshape(-1).astype(np.float32),
        density=(1 / np.maximum(area, 1e-9)).reshape(-1).astype(np.float32),
        calm=_calm(photo, (quality + 0.02 * (inner > 1.5)).astype(np.float32), extent),
        extent=extent,
    )


def wrap(kind: str, difference: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Differences of places, the short way around limbs where charts are periodic."""
    if kind != "painted":
        return difference
    around = difference[:, 1]
    return np.stack([difference[:, 0], around - AROUND * np.rint(around / AROUND)], -1)


def _calm(
    photo: UInt8[np.ndarray, "H W 3"], weights: Float[np.ndarray, "H W"], extent: float
) -> Float[np.ndarray, "p 3"]:
    sigma = max(1.0, 0.03 * extent)
    sums = cv2.GaussianBlur(photo * weights[..., None], (0, 0), sigma)
    total = cv2.GaussianBlur(weights, (0, 0), sigma)[..., None]
    mean = (photo * weights[..., None]).sum((0, 1)) / max(float(weights.sum()), 1e-6)
    return ((sums + 1e-4 * mean) / (total + 1e-4)).reshape(-1, 3).astype(np.float32)


def _derivatives(surface: SurfaceMap) -> tuple[np.ndarray, np.ndarray]:
    """Steps of place per pixel along x and y (2 H W 2), and where both are known."""
    charts, uv = surface.charts, surface.uv
    found, known = [], []
    for axis in (1, 0):
        ahead = [slice(None), slice(None)]
        behind = [slice(None), slice(None)]
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        a, b = tuple(ahead), tuple(behind)
        step = uv[a] - uv[b]
        if surface.kind == "painted":
            step = wrap("painted", step.reshape(-1, 2)).reshape(step.shape)
        length = np.abs(step).max(-1)
        same = (charts[a] == charts[b]) & (charts[a] > 0)
        usual = np.zeros(256, np.float32)
        for chart in np.unique(charts[charts > 0]):
            own = length[same & (charts[a] == chart)]
            usual[chart] = np.median(own) if len(own) else 0
        joined = same & (length <= _JUMP * usual[charts[a]] + 1e-6)
        step = np.where(joined[..., None], step, 0)
        total = np.zeros_like(uv)
        count = np.zeros(charts.shape, np.float32)
        total[a] += step
        total[b] += step
        count[a] += joined
        count[b] += joined
        found.append(total / np.maximum(count, 1)[..., None])
        known.append(count > 0)
    return np.stack(found), known[0] & known[1]


def _facing(
    surface: SurfaceMap, area: Float[np.ndarray, "H W"], size: Float[np.ndarray, "H W"]
) -> tuple[np.ndarray, np.ndarray]:
    """In [0, 1], how squarely each pixel's surface faces the camera; and `Texture.step`.

    The atlas keeps shapes, so that a surface turned away is compressed in one direction: the ratio
    of a pixel's two extents on it is the cosine of the angle. Charts of parts are squares whatever
    the part's shape: there the least area of a chart over that of a pixel is about the cosine.

    Args:
        surface: whose pixels.
        area: of each pixel on its chart.
        size: sum of the squares of a pixel's two extents.
    """
    result, steps = np.zeros_like(area), np.ones_like(area)
    body = surface.body
    if surface.kind == "atlas":
        half = np.clip(area / np.maximum(size, 1e-12), 1e-3, 0.5)
        cosine = (1 - np.sqrt(1 - 4 * half**2)) / (2 * half)
        return _rise(cosine) * body, np.sqrt(area * cosine)
    for chart in np.unique(surface.charts[body]):
        own = surface.charts == chart
        if surface.kind == "painted" and chart > NUM_LIMBS:
            result[own], steps[own] = 1.0, np.sqrt(np.maximum(area[own], 1e-8))
            continue
        values = area[own]
        positive = values[values > 0]
        if len(positive):
            least = np.quantile(positive, 0.25)
            result[own] = _rise(least / np.maximum(values, 1e-12))
            steps[own] = np.sqrt(least)
    return result, steps


def _rise(cosine: np.ndarray) -> np.ndarray:
    return np.clip((np.clip(cosine, 0, 1) - 0.05) / 0.35, 0, 1)


def _index(surface: SurfaceMap, usable: np.ndarray) -> Int32[np.ndarray, "n g g"]:
    side = _GRID[surface.kind]
    num_charts = {"atlas": 1, "parts": 24, "painted": 64}[surface.kind]
    result = np.full((num_charts, side, side), -1, np.int32)
    rows, columns = np.nonzero(usable)
    pixels = (rows * surface.charts.shape[1] + columns).astype(np.int32)
    charts = surface.charts[rows, columns].astype(int) - 1
    cells = np.clip((surface.uv[rows, columns] * side).astype(int), 0, side - 1)
    if surface.kind == "painted":
        # The seam at the back of a limb: its pixels are entered on both sides.
        period = np.array([0, round(AROUND * side)])
        both = [cells + period, cells - period]
        charts = np.tile(charts, 3)
        pixels = np.tile(pixels, 3)
        cells = np.concatenate([cells, *both])
        inside = (cells[:, 1] >= 0) & (cells[:, 1] < side)
        charts, pixels, cells = charts[inside], pixels[inside], cells[inside]
    for chart in np.unique(charts):
        own = charts == chart
        seeds = np.ones((side, side), np.uint8)
        seeds[cells[own, 0], cells[own, 1]] = 0
        _, labels = cv2.distanceTransformWithLabels(
            seeds, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
        )
        labels = np.asarray(labels, np.intp)
        names = np.zeros(int(labels.max()) + 1, np.int32)
        names[labels[cells[own, 0], cells[own, 1]]] = pixels[own]
        result[chart] = names[labels]
    return result
