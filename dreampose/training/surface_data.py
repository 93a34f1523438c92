"""Rendered training people with surface maps, in memory-mapped arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from dreampose import poses
from dreampose.errors import InputError
from dreampose.io.files import new_file, new_folder
from dreampose.poses import parts as body
from dreampose.poses.paint import quantise
from dreampose.synthetic import gait, scene, variety
from dreampose.synthetic import render as rendering
from dreampose.synthetic.generate import MAX_IDENTITIES
from dreampose.synthetic.identity import identity
from dreampose.types import Clip

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
        stage = rendering.prepare(dressed, height=height, width=width)
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
            drawn = rendering.draw(stage, scene.pose(dressed, step))
            found["frames"].append(drawn.image)
            found["parts"].append(drawn.parts)
            found["uv"].append(np.round(drawn.atlas * 65535).astype(np.uint16))
            found["joints"].append(drawn.joints)
            uv = np.moveaxis(drawn.atlas, -1, 0)[None]
            maps = quantise(body.to_maps(drawn.parts[None], uv, 2))
            grid = poses.to_grid(maps, (20, 16), "area", detail)
            found["grid"].append(grid[0].numpy().astype(np.float16))
            found["clip"].append(np.array(index))
    return {name: np.stack(values) for name, values in found.items()}


def render(
    out: Path, split: str, numbers: Iterable[int], *, height: int, width: int, plain: bool = False
) -> Iterator[int]:
    """Renders the people that are missing in a folder.

    Args:
        out: a folder of folders, one a person.
        split: 'train' or 'val'.
        numbers: of the people in the split.
        height: of the frames.
        width: of the frames.
        plain: see `render_person`.

    Yields:
        The number of each person that is there.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        folder = out / f"{number % MAX_IDENTITIES:05d}"
        if not folder.is_dir():
            arrays = render_person(number, split, height=height, width=width, detail=4, plain=plain)
            with new_folder(folder) as part:
                for name, values in arrays.items():
                    np.save(part / f"{name}.npy", values)
        yield number


def read_person(folder: Path, *, detail: int) -> None:
    """Has BlazePose read a person's frames.

    Writes `read.npy`, joints (n 33 4), NaN where a stretch was misread, and `read_grid.npy`, the
    painted pose maps on the latent grid (n c h w).
    """
    frames, clip = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "clip"))
    joints = np.full((len(frames), 33, 4), np.nan, np.float32)
    grids = np.zeros((len(frames), 2 * detail**2, 20, 16), np.float16)
    for number in np.unique(clip):
        own = np.flatnonzero(clip == number)
        pictures = Clip(frames=np.array(frames[own]), fps=FPS, source=str(folder))
        height, width = pictures.frames.shape[1:3]
        try:
            motion = poses.extract(
                pictures, poses.estimator("blazepose"), height=height, width=width
            )
        except InputError:
            continue
        joints[own] = motion.joints
        grids[own] = poses.to_grid(motion.maps, (20, 16), "area", detail).numpy()
    for name, values in (("read_grid", grids), ("read", joints)):
        with new_file(folder / f"{name}.npy") as part, part.open("wb") as file:
            np.save(file, values)
