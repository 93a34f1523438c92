"""Generation of a whole synthetic data set: clips and manifest."""

import csv
import io
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from dreampose.errors import InputError
from dreampose.io.files import new_file
from dreampose.synthetic.clip import DEFAULT_FPS, render_clip, write_clip
from dreampose.synthetic.gait import MOTIONS
from dreampose.synthetic.identity import check_split, identity

MANIFEST = "manifest.csv"
DEFAULT_MOTIONS = ("walk", "turn")
"""Default motions of data sets and of the benchmark."""
SUFFIXES = (".npz", ".json", ".mp4")
"""Files of a clip in the order in which they are written."""
MAX_IDENTITIES = 100_000
"""Largest number of people per data set seed."""


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """One clip to render; a row of the manifest."""

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
    """Number of the person in the split; first argument of `identity`."""


def tasks(
    *,
    identities: int,
    frames: int,
    split: str,
    seed: int,
    height: int,
    width: int,
    motions: Sequence[str] = DEFAULT_MOTIONS,
) -> list[ClipTask]:
    """Clips of a data set: all motions of the first person, then of the second, and so on.

    Args:
        identities: number of people, 1 to `MAX_IDENTITIES`.
        frames: frames per clip, at least 1.
        split: 'train', 'val' or 'test'.
        seed: not negative; people of different seeds differ.
        height: pixels, even, at least 32.
        width: pixels, even, at least 32.
        motions: names of `gait.MOTIONS`; duplicates are dropped.

    Raises:
        InputError: an argument is out of range.
    """
    check_split(split)
    if not 1 <= identities <= MAX_IDENTITIES:
        raise InputError(f"identities must be from 1 to {MAX_IDENTITIES}, got {identities}")
    if frames < 1:
        raise InputError(f"frames must be at least 1, got {frames}")
    unknown = [motion for motion in motions if motion not in MOTIONS]
    if not motions or unknown:
        raise InputError(
            f"motions must be among {', '.join(MOTIONS)}, got {', '.join(unknown) or 'none'}"
        )
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    for name, side in (("height", height), ("width", width)):
        if side < 32 or side % 2:
            raise InputError(f"size must have an even {name} of at least 32, got {side}")
    result: list[ClipTask] = []
    for index in range(identities):
        subject = f"{split}-{seed}-{index:05d}"
        for motion in dict.fromkeys(motions):
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
    """Whether all three files of the clip exist.

    Raises:
        InputError: the existing clip has another size or length.
    """
    path = out / task.path
    if not all(path.with_suffix(suffix).is_file() for suffix in SUFFIXES):
        return False
    check_same(path.with_suffix(".json").read_text(), task)
    return True


def check_same(facts: str, task: ClipTask) -> None:
    """Checks that a finished clip's JSON matches the task.

    Raises:
        InputError: the size or the number of frames differs.
    """
    found = json.loads(facts)
    for name in ("num_frames", "height", "width"):
        wanted = getattr(task, name)
        if found.get(name, wanted) != wanted:
            raise InputError(
                f"out must be a new folder or hold clips of {name} {wanted}, "
                f"got {name} {found[name]} in {task.path}"
            )


def render_task(out: Path, task: ClipTask) -> None:
    """Renders and writes one clip, unless it exists."""
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


def manifest_text(rows: Sequence[ClipTask]) -> str:
    """Manifest as CSV text, one row per clip."""
    text = io.StringIO()
    names = [field.name for field in fields(ClipTask)]
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def _render(argument: tuple[Path, ClipTask]) -> ClipTask:
    render_task(*argument)
    return argument[1]


def generate(
    out: str | Path, plan: Sequence[ClipTask], *, workers: int = 1
) -> Iterator[tuple[int, int]]:
    """Renders the clips of a plan that `tasks` made. Finished clips are skipped.

    Args:
        out: folder of the data set; its manifest is written last.
        plan: clips to render.
        workers: number of processes, at least 1.

    Yields:
        Number of finished clips and number of all clips: once at the start, then after each clip.

    Raises:
        InputError: `workers` is out of range, or the folder holds clips of another size.
    """
    out = Path(out)
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
    with new_file(out / MANIFEST) as part:
        part.write_text(manifest_text(plan))
