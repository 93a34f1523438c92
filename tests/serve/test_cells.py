"""Cells of samplers and the videos assigned to them."""

from collections import Counter

import pytest

from serve.deployments.cells import cell_sizes, cells_by_preference


@pytest.mark.parametrize(
    ("num_samplers", "per_cell", "num_cells", "sizes"),
    [
        (1, 64, 0, [1]),
        (64, 64, 0, [64]),
        (65, 64, 0, [33, 32]),
        (200, 64, 0, [50, 50, 50, 50]),
        (5, 64, 2, [3, 2]),
        (2, 64, 4, [1, 1]),
    ],
)
def test_samplers_are_divided_evenly(num_samplers, per_cell, num_cells, sizes):
    assert cell_sizes(num_samplers, per_cell, num_cells) == sizes


def test_videos_spread_over_cells_and_only_those_of_a_lost_cell_move():
    names = [f"video_{number}" for number in range(3000)]
    orders = {name: cells_by_preference(name, 5) for name in names}
    first = Counter(order[0] for order in orders.values())
    assert all(500 < count < 700 for count in first.values()), first
    # Without cell 2 each video keeps its cell, or moves to its second choice.
    moved = Counter(order[1] for order in orders.values() if order[0] == 2)
    assert set(moved) == {0, 1, 3, 4}
    assert all(count > 100 for count in moved.values()), moved
