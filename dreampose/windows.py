"""Which frames go together: pose windows, photo/target pairs, the order of an epoch.

Knows indices only, nothing of pixels, files or models.
"""

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


def epoch_order(num_items: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " n"]:
    """The order in which an epoch visits its items; the same for every rank and every rerun."""
    return np.random.default_rng((seed, epoch)).permutation(num_items)


def shard(
    order: Int64[np.ndarray, " n"], *, offset: int, batch_size: int, rank: int, num_ranks: int
) -> Int64[np.ndarray, " b"]:
    """The part of one global batch that belongs to a rank.

    The global batch is the `batch_size * num_ranks` items from `offset` on; where the epoch ends
    inside it, the epoch's first items fill it, so that all ranks take equally many steps of equal
    size. Every item is visited, none twice but for that filling.
    """
    positions = offset + rank + np.arange(batch_size) * num_ranks
    return order[positions % len(order)]
