"""Triangle rasterization with an exact z-buffer."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64


@dataclass(frozen=True, kw_only=True)
class Fragments:
    """Pairs of a triangle and a pixel whose centre it covers."""

    pixel: Int64[np.ndarray, " n"]
    """Index into the flattened picture."""
    face: Int64[np.ndarray, " n"]
    bary: Float32[np.ndarray, "n 3"]
    """Barycentric coordinates of the pixel centre."""
    depth: Float32[np.ndarray, " n"]

    def take(self, rows: Int64[np.ndarray, " m"] | Bool[np.ndarray, " n"]) -> "Fragments":
        """Selects fragments by index or mask."""
        return Fragments(
            pixel=self.pixel[rows],
            face=self.face[rows],
            bary=self.bary[rows],
            depth=self.depth[rows],
        )


def fragments(
    points: Float32[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"], height: int, width: int
) -> Fragments:
    """Rasterizes triangles.

    Args:
        points: x and y in pixels, and depth, which increases away from the camera.
        faces: triangles; the cost of each is the area of its bounding box.
        height: height of the picture in pixels.
        width: width of the picture in pixels.

    Returns:
        Fragments ordered from far to near triangles.
    """
    # Separate corners: numpy is slow at reductions over an axis of length 3.
    a, b, c = (points[faces[:, corner]] for corner in range(3))
    order = np.argsort(-np.minimum(np.minimum(a[:, 2], b[:, 2]), c[:, 2]), kind="stable")
    a, b, c = a[order], b[order], c[order]
    low = np.minimum(np.minimum(a, b), c)[:, :2]
    high = np.maximum(np.maximum(a, b), c)[:, :2]
    limit = np.array([width, height], np.float32)
    first = np.clip(np.ceil(low - 0.5), 0, limit).astype(np.int32)
    last = np.clip(np.floor(high - 0.5) + 1, 0, limit).astype(np.int32)
    size = np.maximum(last - first, 0)
    count = size[:, 0] * size[:, 1]
    used = np.flatnonzero(count)
    count = count[used]
    row = np.repeat(used, count)
    offset = np.arange(count.sum(), dtype=np.int32) - np.repeat(np.cumsum(count) - count, count)
    offset = offset.astype(np.int32)
    columns = size[row, 0]
    down = offset // columns
    x = first[row, 0] + (offset - down * columns)
    y = first[row, 1] + down
    # Barycentric coordinates are affine in x and y.
    area = (b[:, 1] - c[:, 1]) * (a[:, 0] - c[:, 0]) + (c[:, 0] - b[:, 0]) * (a[:, 1] - c[:, 1])
    safe = np.where(np.abs(area) < 1e-9, np.float32(np.inf), area)
    ax, ay = (b[:, 1] - c[:, 1]) / safe, (c[:, 0] - b[:, 0]) / safe
    bx, by = (c[:, 1] - a[:, 1]) / safe, (a[:, 0] - c[:, 0]) / safe
    dx = x + np.float32(0.5) - c[row, 0]
    dy = y + np.float32(0.5) - c[row, 1]
    first_bary = ax[row] * dx + ay[row] * dy
    second_bary = bx[row] * dx + by[row] * dy
    third_bary = 1 - first_bary - second_bary
    inside = (first_bary >= 0) & (second_bary >= 0) & (third_bary >= 0)
    inside &= np.isfinite(safe)[row]
    kept = np.flatnonzero(inside)
    row = row[kept]
    bary = np.stack([first_bary[kept], second_bary[kept], third_bary[kept]], 1).astype(np.float32)
    depth = bary[:, 0] * a[row, 2] + bary[:, 1] * b[row, 2] + bary[:, 2] * c[row, 2]
    pixel = y[kept].astype(np.int64) * width + x[kept]
    return Fragments(pixel=pixel, face=order[row], bary=bary, depth=depth.astype(np.float32))


def nearest(found: Fragments, num_pixels: int) -> Int64[np.ndarray, " hits"]:
    """Indices of the visible fragments: the one of least depth for every covered pixel."""
    depth = np.full(num_pixels, np.inf, np.float32)
    winner = np.full(num_pixels, -1, np.int64)
    rows = np.arange(len(found.pixel))
    # Fragments are ordered from far to near, so the first pass is nearly right. Each further pass
    # writes only fragments nearer than the current one, until the minimum is exact.
    while len(rows):
        pixel = found.pixel[rows]
        depth[pixel] = found.depth[rows]
        winner[pixel] = rows
        rows = rows[found.depth[rows] < depth[pixel]]
    return winner[winner >= 0]
