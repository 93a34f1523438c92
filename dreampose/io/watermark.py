"""Invisible watermark of generated frames.

A spread-spectrum watermark: a fixed grid of pseudo-random signs changes the brightness of every
frame by one 8-bit level up or down (PSNR 49 dB). The grid is stretched over the whole picture, so
the watermark survives scaling and lossy coding, and it is static, so it costs few bits. The
detector correlates the grid with the local variation between cells. Half of the cells encode the
presence of the watermark, the other half 24 bits of payload and 8 bits of checksum.

It is not robust against attacks: the signs are public, and cropping destroys it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

GRID = 48
"""Number of rows and of columns of the grid."""
CODE_BITS, CHECK_BITS = 24, 8
THRESHOLD = 6.0
"""Detection threshold; scores of unmarked videos are standard normal, so 1 in 10^9 exceeds it."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Result of the detector.

    Attributes:
        score: correlation in standard deviations of unmarked videos.
        code: payload, six hexadecimal digits; `None` if it cannot be decoded.
    """

    score: float
    code: str | None

    @property
    def found(self) -> bool:
        """Whether the frames have the watermark."""
        return self.score >= THRESHOLD


def code_of(content: bytes) -> str:
    """Payload for a content: the first six hexadecimal digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[: CODE_BITS // 4]


def embed(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], code: str
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the frames with the watermark.

    Args:
        frames: frames of one video, of any size.
        code: payload, six hexadecimal digits.
    """
    signs, up = _signs(code), np.zeros((0, 0, 3), np.uint8)
    down = up
    for frame in frames:
        height, width = frame.shape[:2]
        if up.shape[:2] != (height, width):
            soft = cv2.resize(signs, (width, height), interpolation=cv2.INTER_LINEAR)
            # One level up or down, none between cells of opposite sign. All channels change
            # equally: chroma is coded coarsely, and a change of hue would be visible.
            steps = np.repeat(np.rint(3 * soft)[..., None], 3, axis=-1)
            up, down = (steps > 0).astype(np.uint8), (steps < 0).astype(np.uint8)
        # OpenCV saturates at 0 and 255.
        yield cv2.subtract(cv2.add(frame, up), down)


def detect(frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Mark:
    """Detects the watermark in at least one frame of a video."""
    total, count = np.zeros((GRID, GRID), np.float32), 0
    for frame in frames:
        cells = cv2.resize(frame @ LUMA, (GRID, GRID), interpolation=cv2.INTER_AREA)
        total += cells - cv2.blur(cells, (3, 3))
        count += 1
    residual = total / count
    # Cells with much texture get little weight.
    weight = 1 / (cv2.blur(residual**2, (5, 5)) + 0.05)
    chips, owner = _layout()
    votes = (weight * residual).ravel() * chips
    shared = votes[owner < 0]
    # The signs are independent of the picture, so the variances of the terms add up.
    score = float(shared.sum() / max(np.sqrt((shared**2).sum()), 1e-12))
    sums = np.bincount(owner[owner >= 0], votes[owner >= 0])
    bits = np.packbits(sums > 0).tobytes()
    code = bits[: CODE_BITS // 8].hex()
    is_read = score >= THRESHOLD and bits == _with_check(code)
    return Mark(score=score, code=code if is_read else None)


def _signs(code: str) -> Float[np.ndarray, "g g"]:
    """Grid of a payload: 1 or -1 in every cell."""
    chips, owner = _layout()
    bits = np.unpackbits(np.frombuffer(_with_check(code), np.uint8)).astype(np.float32) * 2 - 1
    return np.where(owner < 0, chips, chips * bits[owner]).reshape(GRID, GRID).astype(np.float32)


def _with_check(code: str) -> bytes:
    content = bytes.fromhex(code)
    assert len(content) == CODE_BITS // 8, code
    return content + hashlib.sha256(content).digest()[: CHECK_BITS // 8]


@cache
def _layout() -> tuple[Float[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Sign of every cell, and the index of the bit that it encodes; -1 encodes presence.

    Derived from a hash, which does not depend on library versions: old videos stay detectable.
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
