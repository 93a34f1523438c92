"""Pose windows, frame pairs and the order of an epoch."""

import numpy as np
import pytest

from dreampose import windows
from dreampose.errors import InputError


def test_window_edges_repeat() -> None:
    assert windows.windows(6, 5).tolist() == [
        [0, 0, 0, 1, 2],
        [0, 0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [2, 3, 4, 5, 5],
        [3, 4, 5, 5, 5],
    ]


def test_one_frame_fills_its_window() -> None:
    assert windows.windows(1, 5).tolist() == [[0] * 5]


@pytest.mark.parametrize("num_poses", [0, 2, 4, -1])
def test_even_windows_are_refused(num_poses: int) -> None:
    with pytest.raises(InputError, match=f"num_poses must be odd and positive, got {num_poses}"):
        windows.windows(6, num_poses)


def test_pairs_are_other_frames_of_the_same_clip_all_equally_often() -> None:
    targets = np.repeat(np.arange(4), 3000)
    photos = windows.sample_pairs(targets, np.full(12_000, 4), np.random.default_rng(0))
    assert not (photos == targets).any()
    counts = np.bincount(targets * 4 + photos, minlength=16).reshape(4, 4)
    assert np.abs(counts[~np.eye(4, dtype=bool)] - 1000).max() < 120


def test_a_clip_of_one_frame_is_its_own_photo() -> None:
    photos = windows.sample_pairs(np.zeros(5, int), np.ones(5, int), np.random.default_rng(0))
    assert photos.tolist() == [0] * 5


@pytest.mark.parametrize("num_items", [64, 61, 3])
def test_ranks_cover_each_item_and_take_equal_steps(num_items: int) -> None:
    order = windows.epoch_order(num_items, seed=1, epoch=2)
    batch_size, num_ranks = 4, 3
    visited: list[int] = []
    for offset in range(0, num_items, batch_size * num_ranks):
        shares = [
            windows.shard(
                order, offset=offset, batch_size=batch_size, rank=rank, num_ranks=num_ranks
            ).tolist()
            for rank in range(num_ranks)
        ]
        assert [len(share) for share in shares] == [batch_size] * num_ranks
        # Interleaved, the shares are the global batch that one rank alone would have seen.
        visited += [share[index] for index in range(batch_size) for share in shares]
    assert sorted(visited[:num_items]) == list(range(num_items))
    assert visited[num_items:] == np.resize(order, len(visited))[num_items:].tolist()


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = windows.epoch_order(50, seed=3, epoch=0)
    assert (first == windows.epoch_order(50, seed=3, epoch=0)).all()
    assert (first != windows.epoch_order(50, seed=3, epoch=1)).any()
    assert (first != windows.epoch_order(50, seed=4, epoch=0)).any()
