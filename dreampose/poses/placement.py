"""Scaling and shifting of points and pose maps."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from dreampose.poses.paint import quantise


@dataclass(frozen=True, kw_only=True)
class Placement:
    """x' = x * scale_x + left, y' = y * scale_y + top, in pixels from the top left corner."""

    scale_x: float
    scale_y: float
    left: float
    top: float

    @classmethod
    def fit(cls, old: tuple[int, ...], new: tuple[int, int]) -> "Placement":
        """Placement by `video.fit` of a picture of size (height, width) `old` in size `new`."""
        (old_height, old_width), (height, width) = old, new
        if (old_height, old_width) == new:
            return cls(scale_x=1.0, scale_y=1.0, left=0.0, top=0.0)
        scale = min(height / old_height, width / old_width)
        new_height, new_width = max(1, round(old_height * scale)), max(1, round(old_width * scale))
        return cls(
            scale_x=new_width / old_width,
            scale_y=new_height / old_height,
            left=(width - new_width) // 2,
            top=(height - new_height) // 2,
        )

    def move(self, joints: Float[np.ndarray, "*t k 4"]) -> Float[np.ndarray, "*t k 4"]:
        """Transforms points; depth is scaled by `scale_x`."""
        scale = np.array([self.scale_x, self.scale_y, self.scale_x, 1], np.float32)
        shift = np.array([self.left, self.top, 0, 0], np.float32)
        return joints * scale + shift

    def warp(
        self, maps: Shaped[np.ndarray, "t u H W"], size: tuple[int, int]
    ) -> Shaped[np.ndarray, "t u h w"]:
        """Transforms maps to a picture of the given (height, width), by nearest neighbour.

        Values are not interpolated, because neighbouring pixels may belong to different parts.
        16-bit maps keep their values; others are rounded by `paint.quantise`.
        """
        height, width = size
        x = np.floor((np.arange(width) + 0.5 - self.left) / self.scale_x).astype(int)
        y = np.floor((np.arange(height) + 0.5 - self.top) / self.scale_y).astype(int)
        x_in, y_in = (x >= 0) & (x < maps.shape[3]), (y >= 0) & (y < maps.shape[2])
        warped = np.zeros((*maps.shape[:2], height, width), maps.dtype)
        warped[:, :, np.flatnonzero(y_in)[:, None], np.flatnonzero(x_in)] = maps[
            :, :, y[y_in][:, None], x[x_in]
        ]
        return warped if maps.dtype == np.uint16 else quantise(warped)
