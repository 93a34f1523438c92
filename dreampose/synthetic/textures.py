"""Procedural cloth prints in full colour, as functions of cloth coordinates."""

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dreampose.synthetic.patterns import TRUNK_RADIUS, Weights

KINDS = ("noise", "marble", "tartan", "zigzag", "scatter", "blocks", "text", "badge", "checks")
"""Kinds of prints that `make` draws from."""

SIDE = 512
"""Pixels of a print's side; it repeats after one turn around the trunk, in both directions."""

_PERIOD = 2 * np.pi * TRUNK_RADIUS
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX)

Texture = Callable[[Weights, Weights], Float32[np.ndarray, "n 3"]]
"""(around, down) in dm to RGB in [0, 255]."""


def make(random: np.random.Generator) -> Texture:
    """A print drawn by `random`; the same generator state gives the same print."""
    kind = KINDS[int(random.integers(len(KINDS)))]
    return lookup(draw(kind, random))


def lookup(picture: UInt8[np.ndarray, "s s 3"]) -> Texture:
    """A print from a square picture that repeats around the trunk (bilinear)."""
    # A margin of one pixel lets the interpolation run across the seam.
    wrapped = np.pad(picture, ((0, 1), (0, 1), (0, 0)), mode="wrap")
    side = len(picture)

    def texture(around: Weights, down: Weights) -> Float32[np.ndarray, "n 3"]:
        if not len(around):
            return np.zeros((0, 3), np.float32)
        x, y = (np.asarray((v / _PERIOD % 1.0) * side, np.float32) for v in (around, down))
        rows = -(-len(x) // 1024)  # OpenCV limits a map's side to 32767
        maps = [np.pad(m, (0, rows * 1024 - len(m))).reshape(rows, 1024) for m in (x, y)]
        found = cv2.remap(wrapped, maps[0], maps[1], cv2.INTER_LINEAR)
        return found.reshape(-1, 3)[: len(x)].astype(np.float32)

    return texture


def draw(kind: str, random: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
    """The picture of a print, SIDE x SIDE RGB.

    Args:
        kind: one of `KINDS`.
        random: of colours, sizes and places.
    """
    assert kind in KINDS
    colours = palette(random, int(random.integers(2, 6)))
    if kind in ("noise", "marble"):
        field = fractal(random, SIDE, SIDE, octaves=int(random.integers(2, 6)))
        if kind == "marble":
            field = (np.sin(field * random.uniform(8, 25)) + 1) / 2
        picture = _grade(field, colours, soft=bool(random.random() < 0.6))
    elif kind == "tartan":
        picture = _tartan(random, colours)
    elif kind == "zigzag":
        picture = _zigzag(random, colours)
    elif kind == "checks":
        cells = int(random.integers(6, 28))
        grid = random.integers(len(colours), size=(cells, cells))
        picture = cv2.resize(colours[grid], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    elif kind == "scatter":
        picture = _scatter(random, colours)
    elif kind == "blocks":
        picture = _blocks(random, colours)
    elif kind == "text":
        picture = _text(random, colours)
    else:
        picture = _badge(random, colours)
    if random.random() < 0.35:
        weave = fractal(random, SIDE, SIDE, octaves=7, first=5) - 0.5
        picture = np.clip(picture + weave[..., None] * random.uniform(20, 90), 0, 255)
    return picture.astype(np.uint8)


def palette(random: np.random.Generator, count: int) -> UInt8[np.ndarray, "n 3"]:
    """Random colours: hues anywhere, some of them greys."""
    hsv = np.stack(
        [
            random.integers(0, 180, count),
            random.integers(0, 256, count) * (random.random(count) > 0.25),
            random.integers(25, 250, count),
        ],
        -1,
    ).astype(np.uint8)
    return cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]


def fractal(
    random: np.random.Generator, height: int, width: int, *, octaves: int, first: int = 1
) -> Float32[np.ndarray, "h w"]:
    """Smooth noise in [0, 1] that repeats in both directions.

    Args:
        random: source of the noise.
        height: of the field.
        width: of the field.
        octaves: number of scales, each half as large and strong as the one before.
        first: exponent of the coarsest grid, of 2 ** first + 1 cells.
    """
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        cells = 2 ** (first + octave) + 1
        grid = np.pad(random.random((cells, cells)).astype(np.float32), 3, mode="wrap")
        scale = height / cells
        big = cv2.resize(
            grid, (round(width / cells * (cells + 6)), round(scale * (cells + 6))),
            interpolation=cv2.INTER_CUBIC,
        )  # fmt: skip
        top, left = round(3 * scale), round(3 * width / cells)
        total += big[top : top + height, left : left + width] * 0.55**octave
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _grade(
    field: Float32[np.ndarray, "h w"], colours: UInt8[np.ndarray, "n 3"], *, soft: bool
) -> np.ndarray:
    place = np.clip(field, 0, 1) * (len(colours) - 1)
    low = np.floor(place).astype(int) if soft else np.rint(place).astype(int)
    high = np.minimum(low + 1, len(colours) - 1)
    share = (place - low)[..., None] if soft else 0.0
    return colours[low] * (1 - share) + colours[high] * share


def _tartan(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    def threads() -> np.ndarray:
        repeats = int(random.integers(3, 12))
        unit = SIDE // repeats
        edges = np.sort(random.integers(0, unit, int(random.integers(2, 7))))
        row = random.integers(len(colours), size=len(edges) + 1)
        line = colours[row[np.searchsorted(edges, np.arange(unit))]]
        return np.resize(np.tile(line, (repeats + 1, 1)), (SIDE, 3)).astype(np.float32)

    across, down = threads()[None], threads()[:, None]
    share = float(random.choice([0.0, 0.5, 0.5, 1.0]))
    return across * share + down * (1 - share)


def _zigzag(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    waves, rows = int(random.integers(3, 20)), int(random.integers(4, 24))
    triangle = np.abs((x * waves / SIDE) % 1 - 0.5) * random.uniform(0, 120)
    slant = float(random.integers(-6, 7)) * x / SIDE
    return colours[np.floor((y + triangle) * rows / SIDE + slant).astype(int) % len(colours)]


def _scatter(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), colours[0], np.uint8)
    size = float(random.uniform(8, 55))
    petals = int(random.integers(0, 7))
    for _ in range(int(random.uniform(0.4, 1.2) * (SIDE / size) ** 2 * 0.35)):
        x, y = random.integers(0, SIDE, 2).tolist()
        radius = max(2, round(size * float(random.uniform(0.4, 1.0))))
        colour = colours[int(random.integers(1, len(colours)))].tolist()
        turn = float(random.uniform(0, 6.3))
        for sx, sy in ((0, 0), (SIDE, 0), (-SIDE, 0), (0, SIDE), (0, -SIDE)):
            centre = (x + sx, y + sy)
            if petals < 3:
                cv2.circle(picture, centre, radius // 2, colour, -1, cv2.LINE_AA)
                continue
            angles = turn + np.arange(2 * petals) * np.pi / petals
            radii = np.where(np.arange(2 * petals) % 2, 0.4, 1.0) * radius / 2
            corners = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
            cv2.fillPoly(picture, [(corners + centre).astype(np.int32)], colour, cv2.LINE_AA)
    return picture


def _blocks(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), colours[0], np.uint8)
    for _ in range(int(random.integers(2, 14))):
        colour = colours[int(random.integers(len(colours)))].tolist()
        if random.random() < 0.5:
            top = int(random.integers(SIDE))
            cv2.rectangle(picture, (0, top), (SIDE, top + int(random.integers(6, 130))), colour, -1)
        else:
            points = random.integers(-60, SIDE + 60, (int(random.integers(3, 6)), 2))
            cv2.fillPoly(picture, [points.astype(np.int32)], colour, cv2.LINE_AA)
    return picture


def _letters(random: np.random.Generator, count: int) -> str:
    return "".join(chr(ord("A") + int(k)) for k in random.integers(26, size=count))


def _text(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), colours[0], np.uint8)
    scale = float(random.uniform(0.7, 3.0))
    thick = max(1, round(scale * float(random.uniform(1.2, 3.2))))
    row, step = 0, round(scale * float(random.uniform(28, 60)))
    while row < SIDE + step:
        word = _letters(random, int(random.integers(2, 9)))
        colour = colours[int(random.integers(1, len(colours)))].tolist()
        font = _FONTS[int(random.integers(len(_FONTS)))]
        start = int(random.integers(-100, SIDE // 2))
        for shift in (0, SIDE, -SIDE):
            cv2.putText(
                picture, word, (start + shift, row), font, scale, colour, thick, cv2.LINE_AA
            )
        row += step
    return picture


def _badge(random: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """One large emblem on the chest, on plain cloth."""
    picture = np.full((SIDE, SIDE, 3), colours[0], np.uint8)
    # The chest: around 0, which lies at the left edge, and 2 dm above the waist.
    canvas = np.roll(picture, SIDE // 2, axis=1)
    y = round((-1.95 / _PERIOD % 1.0) * SIDE)
    radius = int(random.integers(26, 52))
    first, second = (colours[int(random.integers(1, len(colours)))].tolist() for _ in range(2))
    if random.random() < 0.5:
        cv2.circle(canvas, (SIDE // 2, y), radius, first, -1, cv2.LINE_AA)
        cv2.circle(canvas, (SIDE // 2, y), round(radius * 0.7), second, -1, cv2.LINE_AA)
    else:
        points = random.integers(-radius, radius + 1, (int(random.integers(3, 7)), 2))
        hull = cv2.convexHull((points + np.array([SIDE // 2, y])).astype(np.int32))
        cv2.fillPoly(canvas, [hull], first, cv2.LINE_AA)
    word = _letters(random, int(random.integers(1, 5)))
    scale = float(random.uniform(0.8, 2.0))
    (wide, tall), _ = cv2.getTextSize(word, _FONTS[1], scale, 3)
    place = (SIDE // 2 - wide // 2, y + tall // 2)
    ink = colours[int(random.integers(len(colours)))].tolist()
    cv2.putText(canvas, word, place, _FONTS[1], scale, ink, 3, cv2.LINE_AA)
    return np.roll(canvas, -(SIDE // 2), axis=1)
