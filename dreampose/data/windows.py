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


def plan_streamed_epoch(
    buckets: Int64[np.ndarray, " n"],
    clips: Int64[np.ndarray, " n"],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    num_lanes: int,
    shuffle_clips: int,
) -> Epoch:
    """Shuffles items so that few clips are needed at a time.

    Clips are permuted and dealt to lanes, one per batch of a step, by the number of their items.
    Within a lane, the items of `shuffle_clips` consecutive clips are shuffled together. Each step
    takes a batch from each lane; a rank that computes the batches r, r + n, … of a step reads the
    clips of these lanes only. Steps of several buckets are interleaved at random. Every item
    occurs once. At the end of a bucket, lanes run out one after the other and batches can mix them.

    Args:
        buckets: bucket of each item.
        clips: clip of each item; all items of a clip are in one bucket.
        seed: of the order, together with `epoch`.
        epoch: from 0.
        batch_size: items per lane and step.
        num_lanes: batches per step, at least 1.
        shuffle_clips: clips shuffled together, at least 1.
    """
    generator = np.random.default_rng((seed, epoch, 1))
    by_clip = np.split(
        order := np.argsort(clips, kind="stable"),
        np.flatnonzero(np.diff(clips[order])) + 1,
    )
    steps: list[list[np.ndarray]] = []
    for bucket in np.unique(buckets):
        own = [items for items in by_clip if buckets[items[0]] == bucket]
        lanes: list[list[np.ndarray]] = [[] for _ in range(num_lanes)]
        lengths = np.zeros(num_lanes, np.int64)
        for index in generator.permutation(len(own)):
            lane = int(np.argmin(lengths))
            lanes[lane].append(own[index])
            lengths[lane] += len(own[index])
        shuffled = [
            [
                generator.permutation(np.concatenate(lane[start : start + shuffle_clips]))
                for start in range(0, len(lane), shuffle_clips)
            ]
            for lane in lanes
            if lane
        ]
        sequences = [np.concatenate(parts) for parts in shuffled]
        longest = max(map(len, sequences))
        steps.append(
            [
                np.concatenate([items[start : start + batch_size] for items in sequences])
                for start in range(0, longest, batch_size)
            ]
        )
    turns = generator.permutation(np.repeat(np.arange(len(steps)), [len(own) for own in steps]))
    taken = [iter(own) for own in steps]
    runs = [next(taken[turn]) for turn in turns]
    sizes = [len(run) for run in runs]
    return Epoch(order=np.concatenate(runs), ends=np.repeat(np.cumsum(sizes), sizes), fill=False)


def split_batches(items: Int64[np.ndarray, " n"], batch_size: int) -> list[Int64[np.ndarray, " b"]]:
    """Splits the items of a step into batches; rank r of n computes the batches r, r + n, ….

    The batches do not depend on the number of ranks, so neither does the result of the step.
    """
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
