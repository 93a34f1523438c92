"""Rendered training people with surface maps, in memory-mapped arrays."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Shaped

from dreampose import poses
from dreampose.catwalk import gait, render, scene, variety
from dreampose.catwalk.generate import MAX_IDENTITIES
from dreampose.catwalk.identity import identity
from dreampose.files import new_folder
from dreampose.poses import parts as body
from dreampose.poses.paint import quantise

LENGTH, FPS = 48, 24.0
"""Frames and rate of the clips of which stretches are rendered."""
STRETCHES = (("walk", 14, 1.0), ("turn", 18, 1.0), ("across", 10, 0.4))
"""Motion, consecutive frames, and probability that a person has it."""


@dataclass(frozen=True, kw_only=True)
class Person:
    """All rendered frames of one person; arrays are mapped from disk.

    frames (n H W 3) uint8, parts (n H W) uint8, uv (n H W 2) uint16 (places times 65535), joints
    (n 33 3), grid (n c h w) pose maps on the latent grid, clip (n) number of the stretch.
    """

    frames: Shaped[np.ndarray, "n H W 3"]
    parts: Shaped[np.ndarray, "n H W"]
    uv: Shaped[np.ndarray, "n H W 2"]
    joints: Float[np.ndarray, "n 33 3"]
    grid: Shaped[np.ndarray, "n c h w"]
    clip: Shaped[np.ndarray, " n"]


NAMES = tuple(Person.__dataclass_fields__)


def load(folder: Path) -> list[Person]:
    """The people of a folder, in the order of their numbers."""
    return [
        Person(**{name: np.load(each / f"{name}.npy", mmap_mode="r") for name in NAMES})
        for each in sorted(folder.iterdir())
        if each.is_dir() and not each.name.startswith(".") and (each / "frames.npy").is_file()
    ]


def render_person(
    number: int, split: str, *, height: int, width: int, detail: int, plain: bool = False
) -> dict[str, np.ndarray]:
    """Renders one person; the same arguments give the same arrays.

    Args:
        number: of the person in the split.
        split: 'train' or 'val'.
        height: of the frames.
        width: of the frames.
        detail: squares of a latent cell of 1/20 of the height, for `Person.grid`.
        plain: as in the benchmark's clips, without varied prints, backgrounds and lights.
    """
    random = np.random.default_rng([number, 23])
    person = identity(number, split)
    if plain:
        dressed = scene.build(person)
        stage = render.prepare(dressed, height=height, width=width)
    else:
        dressed, stage = variety.prepare(person, random, height=height, width=width)
    found: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for index, (motion, count, share) in enumerate(STRETCHES):
        if random.random() >= share:
            continue
        steps = gait.poses(
            dressed.person,
            motion=motion,
            num_frames=LENGTH,
            fps=FPS,
            arm_lift=dressed.arm_lift,
            stance=dressed.stance,
        )
        start = int(random.integers(LENGTH - count + 1))
        for step in steps[start : start + count]:
            drawn = render.draw(stage, scene.pose(dressed, step))
            found["frames"].append(drawn.image)
            found["parts"].append(drawn.parts)
            found["uv"].append(np.round(drawn.atlas * 65535).astype(np.uint16))
            found["joints"].append(drawn.joints)
            uv = np.moveaxis(drawn.atlas, -1, 0)[None]
            maps = quantise(body.to_maps(drawn.parts[None], uv, 2))
            grid = poses.to_grid(maps, (20, 16), "area", detail)
            found["grid"].append(grid[0].numpy().astype(np.float16))
            found["clip"].append(np.int64(index))
    return {name: np.stack(values) for name, values in found.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Renders the people that are missing in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", choices=("train", "val"), default="train")
    parser.add_argument("--people", type=int, required=True)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=40)
    parser.add_argument("--height", type=int, default=320)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for index in range(args.first, args.first + args.people):
        folder = args.out / f"{index:05d}"
        if folder.is_dir():
            continue
        arrays = render_person(
            args.seed * MAX_IDENTITIES + index,
            args.split,
            height=args.height,
            width=args.width,
            detail=4,
            plain=args.plain,
        )
        with new_folder(folder) as part:
            for name, values in arrays.items():
                np.save(part / f"{name}.npy", values)
    return 0


if __name__ == "__main__":
    sys.exit(main())
