"""Clips of drawn people, encoded for every stage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreampose import checkpoints, data
from dreampose.config import Recipe
from dreampose.poses import Motion
from dreampose.types import Clip

NUM_FRAMES = 5


def draw_clip(seed: int, height: int = 64, width: int = 48) -> tuple[Clip, Motion]:
    """A coloured box that moves over a grey backdrop, and its pose maps."""
    generator = np.random.default_rng(seed)
    colour = generator.integers(0, 255, 3)
    frames = np.full((NUM_FRAMES, height, width, 3), 180, np.uint8)
    maps = np.zeros((NUM_FRAMES, 2, height, width), np.float32)
    for index in range(NUM_FRAMES):
        left = width // 6 + index * width // 16
        rows, columns = slice(height // 8, height - height // 8), slice(left, left + width // 3)
        frames[index, rows, columns] = colour
        maps[index, 0, rows, columns] = 0.2 + 0.1 * index
        maps[index, 1, rows, columns] = 0.7
    motion = Motion(
        maps=maps,
        joints=np.zeros((NUM_FRAMES, 3, 4), np.float32),
        confidence=np.ones(NUM_FRAMES, np.float32),
        fps=10.0,
        estimator="drawn",
    )
    return Clip(frames=frames, fps=10.0, source=f"clip{seed}.mp4"), motion


def write_data(folder: Path, recipe: Recipe, *, num_clips: int = 3, encoded: bool = True) -> Path:
    """Parquet of drawn clips, two of each subject but the last."""
    pipe = checkpoints.build(recipe) if encoded else None
    for seed in range(num_clips):
        clip, motion = draw_clip(seed, recipe.height, recipe.width)
        row = data.encode_clip(
            clip,
            motion,
            recipe=recipe,
            pipe=pipe,
            seed=0,
            clip_id=f"clip{seed}",
            subject=f"person{seed // 2}",
        )
        data.write_rows(folder / f"{seed}.parquet", [row])
    return folder


@pytest.fixture(scope="session")
def drawn() -> Callable[..., tuple[Clip, Motion]]:
    """Draws the clip of a seed, and its motion."""
    return draw_clip


@pytest.fixture(scope="session")
def write_clips() -> Callable[..., Path]:
    """Writes Parquet data of drawn clips into a folder."""
    return write_data


@pytest.fixture(scope="session")
def tiny_data(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three encoded clips of two subjects."""
    return write_data(tmp_path_factory.mktemp("data"), tiny_recipe)
