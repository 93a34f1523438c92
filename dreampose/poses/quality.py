"""Quality flags of a motion, their summary, and usable ranges."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8

FLAGS = ("filled", "exchanged", "unsure", "jump", "hidden", "outside")
"""Names of the flags, in the order of their bits."""

_MEANINGS = {
    "filled": "no clear pose, filled in from the neighbours",
    "exchanged": "left and right were exchanged by the network and put right",
    "unsure": "left and right may be exchanged",
    "jump": "points jump; replaced by the middle of their neighbours where for one frame",
    "hidden": "legs or arms are hidden or out of the picture, and are left out of the maps",
    "outside": "parts of the body lie outside the pose maps",
}
_UNUSABLE = ("filled", "unsure", "jump", "hidden", "outside")
"""Flags that end a usable stretch; exchanged sides that were put right do not."""
_MOST_RANGES = 8
"""Ranges of frames named in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Summary of a motion's flags.

    Attributes:
        frames: of each flag that occurs, the frames that have it.
        usable: first frame and the one after the last of the longest stretch without flags other
            than 'exchanged'; None where there is none.
        num_frames: of the motion.
    """

    frames: dict[str, tuple[int, ...]]
    usable: tuple[int, int] | None
    num_frames: int

    @property
    def is_clean(self) -> bool:
        """Whether every frame is usable."""
        return self.usable == (0, self.num_frames)

    def sentences(self) -> list[str]:
        """One line for each flag that occurs, with frame numbers, and one for what is usable."""
        lines = [
            f"{name}: {len(frames)} of {self.num_frames} frames ({as_ranges(frames)}): "
            f"{_MEANINGS[name]}"
            for name, frames in self.frames.items()
        ]
        if not self.is_clean:
            if self.usable is None:
                lines.append("usable: no frame is without a flag")
            else:
                start, stop = self.usable
                lines.append(
                    f"usable: the longest stretch without flags is {start}:{stop} "
                    f"({stop - start} of {self.num_frames} frames)"
                )
        return lines


def as_bits(flags: dict[str, Bool[np.ndarray, " t"]], num_frames: int) -> UInt8[np.ndarray, " t"]:
    """Packs flags, by name, into one byte a frame."""
    bits = np.zeros(num_frames, np.uint8)
    for name, frames in flags.items():
        bits |= frames.astype(np.uint8) << FLAGS.index(name)
    return bits


def has_flag(bits: UInt8[np.ndarray, " t"], name: str) -> Bool[np.ndarray, " t"]:
    """Frames that have one flag."""
    return (bits >> FLAGS.index(name)) & 1 > 0


def assess(bits: UInt8[np.ndarray, " t"]) -> Quality:
    """Summarises the flags of a motion."""
    frames = {
        name: tuple(np.flatnonzero(has_flag(bits, name)).tolist())
        for name in FLAGS
        if has_flag(bits, name).any()
    }
    unusable = np.zeros(len(bits), bool)
    for name in _UNUSABLE:
        unusable |= has_flag(bits, name)
    return Quality(frames=frames, usable=longest(~unusable), num_frames=len(bits))


def longest(good: Bool[np.ndarray, " t"]) -> tuple[int, int] | None:
    """The longest run of true values, as the first and the one after the last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(np.int8), [0]])))
    if not len(edges):
        return None
    starts, stops = edges[::2], edges[1::2]
    best = int((stops - starts).argmax())
    return int(starts[best]), int(stops[best])


def as_ranges(frames: Iterable[int]) -> str:
    """Frame numbers as text: '3 to 7, 9, 12 to 20 and 4 more'."""
    runs: list[list[int]] = []
    for frame in sorted(frames):
        if runs and frame == runs[-1][1] + 1:
            runs[-1][1] = frame
        else:
            runs.append([frame, frame])
    texts = [f"{a}" if a == b else f"{a} to {b}" for a, b in runs[:_MOST_RANGES]]
    more = len(runs) - _MOST_RANGES
    return ", ".join(texts) + (f" and {more} more ranges" if more > 0 else "")
