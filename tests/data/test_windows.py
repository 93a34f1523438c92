"""Pose windows, frame pairs and the order of an epoch."""

import numpy as np
import pytest

from dreampose.data import windows
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
def test_even_windows_are_rejected(num_poses: int) -> None:
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


def plan(buckets, *, seed=1, epoch=2, run_length=12, fill=True) -> windows.Epoch:
    return windows.plan_epoch(
        np.asarray(buckets), seed=seed, epoch=epoch, run_length=run_length, fill=fill
    )


def steps(order: windows.Epoch, count: int) -> list[list[int]]:
    """The items of each step of an epoch."""
    taken: list[list[int]] = []
    offset = 0
    while offset < len(order.order):
        taken.append(order.items(offset, count).tolist())
        offset += len(taken[-1])
    assert len(taken) == order.num_steps(count)
    return taken


@pytest.mark.parametrize("num_items", [64, 61, 3])
def test_a_filled_epoch_covers_each_item_in_equal_steps(num_items: int) -> None:
    order = plan(np.zeros(num_items, int))
    taken = steps(order, 12)
    assert {len(items) for items in taken} == {12}
    visited = [item for items in taken for item in items]
    assert sorted(visited[:num_items]) == list(range(num_items))
    assert visited[num_items:] == np.resize(order.order, len(visited))[num_items:].tolist()


def test_a_short_epoch_ends_with_the_remaining_samples() -> None:
    taken = steps(plan(np.zeros(61, int), fill=False), 12)
    assert [len(items) for items in taken] == [12] * 5 + [1]
    assert sorted(item for items in taken for item in items) == list(range(61))


@pytest.mark.parametrize("count", [12, 5, 40])
def test_items_of_one_bucket_meet_in_a_step_and_each_has_its_place(count: int) -> None:
    buckets = np.random.default_rng(0).integers(3, size=100)
    order = plan(buckets)
    taken = steps(order, count)
    assert sorted(item for items in taken for item in items) == list(range(100))
    assert all(len(set(buckets[items].tolist())) == 1 for items in taken)
    # Only the last of a bucket's runs is shorter than the rest.
    lengths = [len(items) for items in steps(order, 12)]
    assert sum(length < 12 for length in lengths) <= 3
    firsts = [buckets[items[0]] for items in steps(order, 12)]
    assert len(set(firsts[:4])) > 1, "the buckets are mixed"


def test_batches_do_not_depend_on_the_number_of_ranks() -> None:
    items = np.arange(10)
    assert [batch.tolist() for batch in windows.split_batches(items, 4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    buckets = np.arange(50) % 2
    first = plan(buckets).order
    assert (first == plan(buckets).order).all()
    assert (first != plan(buckets, epoch=3).order).any()
    assert (first != plan(buckets, seed=2).order).any()
