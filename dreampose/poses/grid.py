"""Pose maps on the latent grid, and back."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def to_grid(
    maps: Float[np.ndarray, "t u H W"] | Float[Tensor, "t u H W"],
    size: tuple[int, int],
    resize: str = "area",
    detail: int = 1,
) -> Float[Tensor, "t c h w"]:
    """Brings maps onto a grid of `size` (height, width), c = u * detail * detail.

    Args:
        maps: any size.
        size: of the grid.
        resize: 'area' averages over each cell: its value over that of a cell full of body is the
            share of it that the body covers. 'nearest' takes each cell's first pixel, as the
            published code does.
        detail: rows and columns of squares of a cell. Each is a channel, resized for itself: the
            squares of the first map row by row, then those of the next.
    """
    tensor = torch.from_numpy(maps) if isinstance(maps, np.ndarray) else maps
    fine = (detail * size[0], detail * size[1])
    return functional.pixel_unshuffle(functional.interpolate(tensor, fine, mode=resize), detail)


def from_grid(
    grid: Float[np.ndarray, "t c h w"], factor: int, detail: int = 1
) -> Float[np.ndarray, "t u H W"]:
    """Maps that `to_grid` brings back onto that very grid: each square is of one value.

    Args:
        grid: as `to_grid` gives it.
        factor: pixels of a cell's side.
        detail: as for `to_grid`; it divides the factor.
    """
    squares = functional.pixel_shuffle(torch.from_numpy(grid.astype(np.float32)), detail)
    scale = factor // detail
    return squares.repeat_interleave(scale, -2).repeat_interleave(scale, -1).numpy()
