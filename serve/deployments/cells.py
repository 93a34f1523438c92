"""Division of samplers into cells, and of videos over them."""

import hashlib
import math


def cell_sizes(num_samplers: int, samplers_per_cell: int, num_cells: int = 0) -> list[int]:
    """Samplers of each cell, as even as possible.

    Args:
        num_samplers: of the application.
        samplers_per_cell: largest number of samplers of one renderer.
        num_cells: of the application; 0 takes as few as possible.
    """
    count = min(num_cells or math.ceil(num_samplers / samplers_per_cell), num_samplers)
    return [num_samplers // count + (index < num_samplers % count) for index in range(count)]


def cells_by_preference(video_id: str, num_cells: int) -> list[int]:
    """Cells for a video, the preferred one first (rendezvous hashing).

    Equal in every process. When a cell is lost only its videos move, evenly to all others.
    """

    def weight(cell: int) -> bytes:
        return hashlib.sha256(f"{cell} {video_id}".encode()).digest()

    return sorted(range(num_cells), key=weight, reverse=True)
