"""Which frames go together: pose windows, photo/target pairs, the order of an epoch.

Knows indices only, nothing of pixels, files or models.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dreampose.errors import InputError


def windows(num_frames: int, num_poses: int) -> Int64[np.ndarray, "t p"]:
    """Frame indices of every frame's pose window, c_p = [p_{i-2} … p_{i+2}] for five poses.

    The edges of a clip repeat its first and last frame.

    Args:
        num_frames: frames of the clip, at least 1; may be less than `num_poses`.
        num_poses: window length, odd and positive.

    Raises:
        InputError: `num_poses` is even or not positive, or there is no frame.
    """
    if num_poses < 1 or num_poses % 2 == 0:
        raise InputError(f"num_poses must be odd and positive, got {num_poses}")
    if num_frames < 1:
        raise InputError(f"num_frames must be at least 1, got {num_frames}")
    offsets = np.arange(num_poses) - num_poses // 2
    return np.clip(np.arange(num_frames)[:, None] + offsets, 0, num_frames - 1)


def sample_pairs(
    targets: Int64[np.ndarray, " b"],
    num_frames: Int64[np.ndarray, " b"],
    generator: np.random.Generator,
) -> Int64[np.ndarray, " b"]:
    """A condition frame for each target frame of a clip, any other frame of the same clip.

    Args:
        targets: index of the target frame inside its clip.
        num_frames: frames of that clip; a clip of one frame is its own condition.
        generator: source of the draw.
    """
    shift = 1 + np.floor(generator.random(len(targets)) * (num_frames - 1)).astype(np.int64)
    return (targets + np.minimum(shift, num_frames - 1)) % num_frames


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The order in which an epoch visits its items; the same for every rank and every rerun.

    order: indices of items. ends: for each place in it, where the run of items that may share a
    batch ends. fill: a step that reaches the end goes on with the first items.
    """

    order: Int64[np.ndarray, " n"]
    ends: Int64[np.ndarray, " n"]
    fill: bool

    def items(self, offset: int, count: int) -> Int64[np.ndarray, " b"]:
        """The items of one step: `count` of them from place `offset` on, or to the run's end."""
        if self.fill:
            return self.order[(offset + np.arange(count)) % len(self.order)]
        return self.order[offset : min(offset + count, int(self.ends[offset]))]

    def num_steps(self, count: int, offset: int = 0) -> int:
        """Steps of at most `count` items from a place to the end."""
        steps = 0
        while offset < len(self.order):
            offset += len(self.items(offset, count))
            steps += 1
        return steps


def plan_epoch(
    buckets: Int64[np.ndarray, " n"], *, seed: int, epoch: int, run_length: int, fill: bool
) -> Epoch:
    """A random order of items in which only items of one bucket meet in a batch.

    Items of one bucket alone are one run. Of several, each one's items are cut into runs that lie
    in random order; the last run of a bucket may be shorter. Every item has one place.

    Args:
        buckets: of each item, such as the index of its frame size.
        seed: of the order, together with `epoch`.
        epoch: counted from 0.
        run_length: items of a run, at least 1.
        fill: see `Epoch`; not with several buckets, whose first items may be of another.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(buckets))
    present = np.unique(buckets)
    if len(present) == 1:
        return Epoch(order=order, ends=np.full(len(order), len(order)), fill=fill)
    runs: list[np.ndarray] = []
    for bucket in present:
        items = order[buckets[order] == bucket]
        runs += np.split(items, range(run_length, len(items), run_length))
    runs = [runs[index] for index in generator.permutation(len(runs))]
    lengths = [len(run) for run in runs]
    return Epoch(
        order=np.concatenate(runs), ends=np.repeat(np.cumsum(lengths), lengths), fill=False
    )


def slots(items: Int64[np.ndarray, " n"], batch_size: int) -> list[Int64[np.ndarray, " b"]]:
    """The items of a step as batches of a rank's turn: slot r of turn t is t * num_ranks + r.

    Slots do not depend on the number of ranks: two ranks that take a turn together do what one
    does in two.
    """
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
