"""Frame sampling: pose windows, training pairs, order of an epoch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dreampose.errors import InputError


def windows(num_frames: int, num_poses: int) -> Int64[np.ndarray, "t p"]:
    """Frame indices of the pose window of each frame, c_p = [p_{i-2} … p_{i+2}] for five poses.

    Indices beyond the ends of a clip are clamped to its first and last frame.

    Args:
        num_frames: of the clip, at least 1; can be less than `num_poses`.
        num_poses: window length, odd and positive.

    Raises:
        InputError: `num_poses` is even or not positive, or `num_frames` is less than 1.
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
    """Samples a condition frame for each target frame: any other frame of the same clip.

    Args:
        targets: index of each target frame in its clip.
        num_frames: of that clip; a single frame is its own condition.
        generator: source of randomness.
    """
    shift = 1 + np.floor(generator.random(len(targets)) * (num_frames - 1)).astype(np.int64)
    return (targets + np.minimum(shift, num_frames - 1)) % num_frames


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Order of the items of an epoch, equal on all ranks and after a resume.

    Attributes:
        order: indices of items.
        ends: for each position in `order`, the end of the run of items that can share a batch.
        fill: whether the last batch is completed with the first items.
    """

    order: Int64[np.ndarray, " n"]
    ends: Int64[np.ndarray, " n"]
    fill: bool

    def items(self, offset: int, count: int) -> Int64[np.ndarray, " b"]:
        """Items of one step: `count` items from position `offset`, or fewer to the run's end."""
        if self.fill:
            return self.order[(offset + np.arange(count)) % len(self.order)]
        return self.order[offset : min(offset + count, int(self.ends[offset]))]

    def num_steps(self, count: int, offset: int = 0) -> int:
        """Number of steps of at most `count` items from position `offset` to the end."""
        steps = 0
        while offset < len(self.order):
            offset += len(self.items(offset, count))
            steps += 1
        return steps


def plan_epoch(
    buckets: Int64[np.ndarray, " n"], *, seed: int, epoch: int, run_length: int, fill: bool
) -> Epoch:
    """Shuffles items so that each batch has items of one bucket only.

    The items of each bucket are split into runs, which are shuffled; the last run of a bucket can
    be shorter. A single bucket is one run. Every item occurs once.

    Args:
        buckets: bucket of each item, such as the index of its frame size.
        seed: of the order, together with `epoch`.
        epoch: from 0.
        run_length: items per run, at least 1.
        fill: see `Epoch`; ignored for several buckets.
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


def split_batches(items: Int64[np.ndarray, " n"], batch_size: int) -> list[Int64[np.ndarray, " b"]]:
    """Splits the items of a step into batches; rank r of n computes the batches r, r + n, ….

    The batches do not depend on the number of ranks, so neither does the result of the step.
    """
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
