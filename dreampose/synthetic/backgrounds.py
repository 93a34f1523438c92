"""Procedural backgrounds: plain, gradients, noise, clutter, walls with floors."""

import cv2
import numpy as np
from jaxtyping import Float32

from dreampose.synthetic.textures import fractal, palette

KINDS = ("gradient", "noise", "clutter", "wall", "bricks")
"""Kinds of backgrounds that `make` draws from."""


def make(random: np.random.Generator, height: int, width: int) -> Float32[np.ndarray, "h w 3"]:
    """A background drawn by `random`.

    Args:
        random: of kind, colours and places.
        height: in pixels.
        width: in pixels.

    Returns:
        RGB in [0, 255].
    """
    kind = KINDS[int(random.integers(len(KINDS)))]
    colours = palette(random, int(random.integers(2, 6))).astype(np.float32)
    # Most rooms are paler than cloth.
    colours = colours + float(random.uniform(0, 0.75)) * (225 - colours)
    floor = round(height * float(random.uniform(0.72, 0.93)))
    if kind == "gradient":
        corners = colours[random.integers(len(colours), size=(2, 2))]
        picture = cv2.resize(corners, (width, height), interpolation=cv2.INTER_LINEAR)
    elif kind == "noise":
        field = fractal(random, height, width, octaves=int(random.integers(1, 6)))[..., None]
        picture = colours[0] + field * (colours[1] - colours[0])
    else:
        picture = np.broadcast_to(colours[0], (height, width, 3)).copy()
        if kind == "bricks":
            _bricks(random, picture, colours)
        elif kind == "clutter":
            _clutter(random, picture, colours, count=int(random.integers(4, 30)))
        elif random.random() < 0.5:
            _clutter(random, picture, colours, count=int(random.integers(1, 4)))
        picture[floor:] = colours[-1] * np.linspace(0.95, 0.8, height - floor)[:, None, None]
        if random.random() < 0.6:
            picture = cv2.GaussianBlur(picture, (0, 0), float(random.uniform(0.5, 0.02 * height)))
    grain = fractal(random, height, width, octaves=5, first=4)[..., None] - 0.5
    return np.clip(picture + grain * float(random.uniform(0, 14)), 0, 255).astype(np.float32)


def _bricks(random: np.random.Generator, picture: np.ndarray, colours: np.ndarray) -> None:
    height, width, _ = picture.shape
    tall = max(4, round(height * float(random.uniform(0.02, 0.12))))
    wide, joint = round(tall * float(random.uniform(1, 3))), max(1, tall // 8)
    for row, top in enumerate(range(0, height, tall)):
        for left in range(-(row % 2) * wide // 2, width, wide):
            shade = colours[1] * float(random.uniform(0.88, 1.08))
            picture[top : top + tall - joint, max(left, 0) : max(left + wide - joint, 0)] = shade


def _clutter(
    random: np.random.Generator, picture: np.ndarray, colours: np.ndarray, *, count: int
) -> None:
    height, width, _ = picture.shape
    for _ in range(count):
        colour = (colours[int(random.integers(len(colours)))] * random.uniform(0.6, 1.1)).tolist()
        x, y = int(random.integers(-20, width)), int(random.integers(-20, height))
        size = (random.uniform(0.03, 0.4, 2) * [width, height]).astype(int)
        match int(random.integers(3)):
            case 0:
                cv2.rectangle(picture, (x, y), (x + int(size[0]), y + int(size[1])), colour, -1)
            case 1:
                axes = (max(1, int(size[0]) // 2), max(1, int(size[1]) // 2))
                cv2.ellipse(picture, (x, y), axes, 0, 0, 360, colour, -1, cv2.LINE_AA)
            case _:
                end = (int(random.integers(width)), int(random.integers(height)))
                cv2.line(picture, (x, y), end, colour, int(random.integers(1, 12)), cv2.LINE_AA)
