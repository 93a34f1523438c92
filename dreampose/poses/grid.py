"""Pose maps on the latent grid, and pose maps drawn over a video. Knows nothing of models."""

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses.landmarks import BONES
from dreampose.poses.motion import Motion

_LEFT, _RIGHT, _MIDDLE = (255, 140, 0), (0, 120, 255), (255, 255, 255)
"""Colours of bones in previews: the person's left, right, and what joins both."""


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


def draw_preview(
    frames: UInt8[np.ndarray, "t H W 3"], motion: Motion
) -> UInt8[np.ndarray, "t H2 W2 3"]:
    """Draws pose maps and bones over a video.

    Args:
        frames: the frames the motion was extracted from, any size.
        motion: as `extract` gives it, not yet aligned.

    Returns:
        Frames of the motion's shape, enlarged to at least 480 pixels high.

    Raises:
        InputError: frames and motion differ in number.
    """
    if len(frames) != motion.num_frames:
        raise InputError(
            f"frames must be as many as the motion's {motion.num_frames}, got {len(frames)}"
        )
    factor = max(1, -(-480 // motion.height))
    size = (motion.height * factor, motion.width * factor)
    return np.stack(
        [
            _draw(video.fit(frame[None], *size)[0], maps, joints, factor, motion.has_points)
            for frame, maps, joints in zip(frames, motion.maps, motion.joints, strict=True)
        ]
    )


def _draw(
    picture: UInt8[np.ndarray, "H W 3"],
    maps: Float[np.ndarray, "u h w"],
    joints: Float[np.ndarray, "k 4"],
    factor: int,
    has_bones: bool,
) -> UInt8[np.ndarray, "H W 3"]:
    u, v = (np.repeat(np.repeat(channel, factor, 0), factor, 1) for channel in maps[-2:])
    hues = np.stack([u * 150, np.full_like(u, 220), 60 + v * 195], axis=-1).astype(np.uint8)
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)
    mixed = np.where((u > 0)[..., None], picture * 0.45 + colours * 0.55, picture)
    picture = np.ascontiguousarray(mixed.astype(np.uint8))
    places = np.round(joints[:, :2] * factor).astype(int).tolist()
    if has_bones:
        for a, b in BONES:
            # In the network's order the left of a pair has the odd index.
            colour = _MIDDLE if (a - b) % 2 else (_LEFT if a % 2 else _RIGHT)
            cv2.line(picture, places[a], places[b], colour, max(1, factor // 2), cv2.LINE_AA)
    for place, joint in zip(places, joints, strict=True):
        if not joint[3] > 0:
            continue
        cv2.circle(picture, place, max(1, factor // 2), (255, 255, 255), -1, cv2.LINE_AA)
    return picture
