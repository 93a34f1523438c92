"""A whole catwalk data set: many people, two clips each, one manifest. Knows nothing of Ray."""

import csv
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dreampose.catwalk.clip import DEFAULT_FPS, render_clip, write_clip
from dreampose.catwalk.gait import MOTIONS
from dreampose.catwalk.identity import check_split, identity
from dreampose.errors import InputError

MAX_IDENTITIES = 100_000
"""People per data set seed."""


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One clip to render: a row of the manifest."""

    path: str
    """File name of the MP4, relative to the manifest."""
    subject: str
    split: str
    motion: str
    fps: float
    num_frames: int
    height: int
    width: int
    number: int
    """Which person of the split: the first argument of `identity`."""


def tasks(
    *, identities: int, frames: int, split: str, seed: int, height: int, width: int
) -> list[ClipTask]:
    """The clips of a data set in their fixed order, walk and turn of each person.

    Raises:
        InputError: an argument is outside its range.
    """
    check_split(split)
    if not 1 <= identities <= MAX_IDENTITIES:
        raise InputError(f"identities must be from 1 to {MAX_IDENTITIES}, got {identities}")
    if frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    for name, side in (("height", height), ("width", width)):
        if side < 32 or side % 2:
            raise InputError(f"size must have an even {name} of at least 32, got {side}")
    result: list[ClipTask] = []
    for index in range(identities):
        subject = f"{split}-{seed}-{index:05d}"
        for motion in MOTIONS:
            result.append(
                ClipTask(
                    path=f"{subject}-{motion}.mp4",
                    subject=subject,
                    split=split,
                    motion=motion,
                    fps=DEFAULT_FPS,
                    num_frames=frames,
                    height=height,
                    width=width,
                    number=seed * MAX_IDENTITIES + index,
                )
            )
    return result


def is_done(out: Path, task: ClipTask) -> bool:
    """Whether the clip's three files are there; the MP4 is written last."""
    path = out / task.path
    return all(path.with_suffix(suffix).is_file() for suffix in (".mp4", ".npz", ".json"))


def render_task(out: Path, task: ClipTask) -> None:
    """Renders and writes one clip, unless it is there."""
    if is_done(out, task):
        return
    person = identity(task.number, task.split)
    clip = render_clip(
        person,
        motion=task.motion,
        num_frames=task.num_frames,
        height=task.height,
        width=task.width,
        fps=task.fps,
    )
    write_clip(clip, out, Path(task.path).stem)


def write_manifest(out: Path, rows: list[ClipTask]) -> None:
    """Writes `manifest.csv`, one row per finished clip, whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / f".manifest.{os.getpid()}.part"
    try:
        with part.open("w", newline="") as file:
            names = [field.name for field in fields(ClipTask)]
            writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
        part.replace(out / "manifest.csv")
    finally:
        part.unlink(missing_ok=True)


def _render(argument: tuple[Path, ClipTask]) -> ClipTask:
    render_task(*argument)
    return argument[1]


def generate(
    out: str | Path,
    *,
    identities: int,
    frames: int,
    split: str,
    seed: int,
    height: int,
    width: int,
    workers: int = 1,
) -> Iterator[tuple[int, int]]:
    """Renders a data set into a folder, skipping finished clips; the manifest is written last.

    Yields:
        Clips done and clips in all, after each clip.

    Raises:
        InputError: an argument is outside its range.
    """
    out = Path(out)
    plan = tasks(
        identities=identities, frames=frames, split=split, seed=seed, height=height, width=width
    )
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    out.mkdir(parents=True, exist_ok=True)
    todo = [(out, task) for task in plan if not is_done(out, task)]
    done = len(plan) - len(todo)
    yield done, len(plan)
    if workers == 1 or len(todo) < 2:
        for item in todo:
            _render(item)
            done += 1
            yield done, len(plan)
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(_render, todo):
                done += 1
                yield done, len(plan)
    write_manifest(out, plan)
