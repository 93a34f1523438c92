"""An invisible mark in frames that says that they are generated, and who made them. Pixels only.

A spread-spectrum mark: a fixed grid of pseudo-random signs, one step of 8-bit brightness up or down
each, laid over every frame alike: a PSNR of 49 dB. It spans the whole picture whatever its size, so
that scaling and lossy coding leave it; being still, it costs a video coder little. The detector
compares the grid with what varies from cell to cell. Half of the cells tell that there is a mark at
all, the others carry 24 bits that name the video and 8 that check them.

It is made for honest use: it survives H.264 and scaling, but neither cropping, nor somebody who
sets out to remove it, since the signs are no secret.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

GRID = 48
"""Cells in a row and in a column."""
CODE_BITS, CHECK_BITS = 24, 8
THRESHOLD = 6.0
"""Scores of unmarked videos are normal with variance 1: one in a thousand million is above."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What was found in some frames.

    Attributes:
        score: in standard deviations of unmarked frames' scores.
        code: 24 bits as six hexadecimal digits, or `None` where the mark is too weak to read.
    """

    score: float
    code: str | None

    @property
    def found(self) -> bool:
        """Whether the frames are marked."""
        return self.score >= THRESHOLD


def code_of(content: bytes) -> str:
    """A code for whatever a video is made from: six hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[: CODE_BITS // 4]


def embed(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], code: str
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """The frames, marked.

    Args:
        frames: of one video, any size.
        code: six hexadecimal digits.
    """
    signs, up = _signs(code), np.zeros((0, 0, 3), np.uint8)
    down = up
    for frame in frames:
        height, width = frame.shape[:2]
        if up.shape[:2] != (height, width):
            soft = cv2.resize(signs, (width, height), interpolation=cv2.INTER_LINEAR)
            # One step of 255 up or down, none where cells of opposite sign meet; all colours
            # alike, since colour is coded coarsely and a change of hue would be seen.
            steps = np.repeat(np.rint(3 * soft)[..., None], 3, axis=-1)
            up, down = (steps > 0).astype(np.uint8), (steps < 0).astype(np.uint8)
        # OpenCV's sums stop at 0 and 255.
        yield cv2.subtract(cv2.add(frame, up), down)


def detect(frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Mark:
    """Looks for a mark in frames of one video, at least one."""
    total, count = np.zeros((GRID, GRID), np.float32), 0
    for frame in frames:
        cells = cv2.resize(frame @ LUMA, (GRID, GRID), interpolation=cv2.INTER_AREA)
        total += cells - cv2.blur(cells, (3, 3))
        count += 1
    residual = total / count
    # Where the picture itself varies much it tells little of the mark.
    weight = 1 / (cv2.blur(residual**2, (5, 5)) + 0.05)
    chips, owner = _layout()
    votes = (weight * residual).ravel() * chips
    shared = votes[owner < 0]
    # The signs are independent of the picture: given it, the sum's variance is that of its terms.
    score = float(shared.sum() / max(np.sqrt((shared**2).sum()), 1e-12))
    sums = np.bincount(owner[owner >= 0], votes[owner >= 0])
    bits = np.packbits(sums > 0).tobytes()
    code = bits[: CODE_BITS // 8].hex()
    is_read = score >= THRESHOLD and bits == _with_check(code)
    return Mark(score=score, code=code if is_read else None)


def _signs(code: str) -> Float[np.ndarray, "g g"]:
    """The mark of a code: 1 or -1 in every cell."""
    chips, owner = _layout()
    bits = np.unpackbits(np.frombuffer(_with_check(code), np.uint8)).astype(np.float32) * 2 - 1
    return np.where(owner < 0, chips, chips * bits[owner]).reshape(GRID, GRID).astype(np.float32)


def _with_check(code: str) -> bytes:
    content = bytes.fromhex(code)
    assert len(content) == CODE_BITS // 8, code
    return content + hashlib.sha256(content).digest()[: CHECK_BITS // 8]


@cache
def _layout() -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The sign of every cell, and which bit it carries; -1 carries none.

    Drawn from a hash, whose output no library's version changes: a mark must be found years later.
    """
    number = GRID * GRID
    chips = np.unpackbits(np.frombuffer(_stream("signs", number // 8), np.uint8))
    order = np.argsort(np.frombuffer(_stream("places", 4 * number), ">u4"), kind="stable")
    owner = np.full(number, -1)
    carriers = order[number // 2 :]
    owner[carriers] = np.arange(len(carriers)) % (CODE_BITS + CHECK_BITS)
    return chips.astype(np.float32) * 2 - 1, owner


def _stream(name: str, length: int) -> bytes:
    return hashlib.shake_256(f"dreampose watermark 1: {name}".encode()).digest(length)
