"""Joints that BlazePose reads from rendered training people, beside their exact truth."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dreampose import poses
from dreampose.errors import InputError
from dreampose.files import new_file
from dreampose.training import surface_data
from dreampose.types import Clip


def read_person(folder: Path, *, detail: int) -> None:
    """Writes `read.npy` (n 33 4) and `read_grid.npy` (n c h w); NaN where a stretch is misread."""
    frames, clip = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("frames", "clip"))
    joints = np.full((len(frames), 33, 4), np.nan, np.float32)
    grids = np.zeros((len(frames), 2 * detail**2, 20, 16), np.float16)
    for number in np.unique(clip):
        own = np.flatnonzero(clip == number)
        pictures = Clip(frames=np.array(frames[own]), fps=surface_data.FPS, source=str(folder))
        try:
            motion = poses.extract(
                pictures,
                poses.estimator("blazepose"),
                height=pictures.frames.shape[1],
                width=pictures.frames.shape[2],
            )
        except InputError:
            continue
        joints[own] = motion.joints
        grids[own] = poses.to_grid(motion.maps, (20, 16), "area", detail).numpy()
    for name, values in (("read_grid", grids), ("read", joints)):
        with new_file(folder / f"{name}.npy") as part, part.open("wb") as file:
            np.save(file, values)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the people of a folder that have not been read."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    for folder in sorted(args.data.iterdir()):
        whole = folder.is_dir() and (folder / "clip.npy").is_file()
        if whole and not (folder / "read.npy").is_file():
            read_person(folder, detail=4)
    return 0


if __name__ == "__main__":
    sys.exit(main())
