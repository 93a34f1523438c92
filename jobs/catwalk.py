#!/usr/bin/env python
"""Rendering of the synthetic data set with Ray Data."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pyarrow import fs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.errors import InputError
from dreampose.options import catwalk
from dreampose.synthetic.generate import (
    MANIFEST,
    SUFFIXES,
    ClipTask,
    check_same,
    manifest_text,
    render_task,
)
from jobs.common import driver, paths, planning, storage

if TYPE_CHECKING:
    from cluster.capacity import Capacity

EXAMPLES = """\
  # 96 people for training, 12 for validation, 24 for tests
  jobs/catwalk.py --out clips/train --identities 96 --split train --seed 1
  jobs/catwalk.py --out clips/val --identities 12 --split val --seed 2
  jobs/catwalk.py --out clips/test --identities 24 --split test --seed 3

  # At the embedded model's size, on a bucket that every node of the cluster reaches
  jobs/catwalk.py --out s3://studio/clips --identities 1000 --size 160x128
"""


class Renderer:
    """Renders one clip per row; its MP4 marks it as done."""

    def __init__(self, out: str) -> None:
        self.out = out

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Renders the clips of a batch; returned rows only have paths."""
        names = list(batch)
        for values in zip(*(batch[name] for name in names), strict=True):
            task = ClipTask(**{k: _plain(v) for k, v in zip(names, values, strict=True)})
            _render(self.out, task)
        return {"path": list(batch["path"])}


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(render, _parser(), argv, plan=estimate)


def render(args: argparse.Namespace) -> int:
    """Validates the flags and renders missing clips; returns the exit code."""
    plan = catwalk.clip_tasks(args)
    if args.workers is not None and args.workers < 1:
        raise InputError(f"workers must be at least 1, got {args.workers}")
    out = storage.absolute(args.out)
    todo = _missing(out, plan)
    there = next((task for task in plan if task not in todo), None)
    if there is not None:
        check_same(storage.read_text(f"{out}/{Path(there.path).stem}.json"), there)
    if todo:
        with driver.ray_session(args.profile, local=paths.local_paths("catwalk", args)) as capacity:
            _run(args, out, todo, capacity)
    storage.write_text(f"{out}/{MANIFEST}", manifest_text(plan))
    print(f"{args.out}: {len(plan)} clips, {len(plan) - len(todo)} of them there before")
    return 0


def _run(
    args: argparse.Namespace, out: str, todo: Sequence[ClipTask], capacity: "Capacity"
) -> None:
    import ray

    from cluster.capacity import reserve
    from jobs.common.worklist import Worklist

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    allocation = capacity.allocate(
        "catwalk",
        worker_requests.from_flags("catwalk", capacity.profile, args),
        workers=args.workers,
        at_most=len(todo),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_datasource(
        Worklist([asdict(task) for task in todo]),
        override_num_blocks=len(todo),
        **allocation.light_args(allocation.read_cpus),
    ).map_batches(
        Renderer,
        fn_constructor_kwargs={"out": out},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=allocation.workers),
        **allocation.remote_args,
    )

    def progress() -> driver.Progress:
        return driver.Progress(done=len(todo) - len(_missing(out, todo)), total=len(todo))

    with reserve(capacity, allocation, limit=args.wait_for_resources):
        pass
    with driver.bar(progress, unit="clip"):
        for _ in rows.iter_batches(batch_size=1):
            pass


def _plain(value: Any) -> Any:
    """Converts numpy scalars of Ray Data to Python's."""
    return value.item() if hasattr(value, "item") else value


def _render(out: str, task: ClipTask) -> None:
    if "://" not in out:
        render_task(Path(out), task)
        return
    filesystem, path = storage.resolve(out)
    with TemporaryDirectory() as folder:
        render_task(Path(folder), task)
        stem = Path(task.path).stem
        # The video comes last: where it is, the clip is complete.
        for suffix in SUFFIXES:
            fs.copy_files(
                str(Path(folder) / f"{stem}{suffix}"),
                f"{path}/{stem}{suffix}",
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=filesystem,
            )


def _missing(out: str, plan: Sequence[ClipTask]) -> list[ClipTask]:
    """Clips with missing files."""
    filesystem, path = storage.resolve(out)
    listed = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    there = {file.base_name for file in listed if file.type == fs.FileType.File}
    return [
        task
        for task in plan
        if not all(f"{Path(task.path).stem}{suffix}" in there for suffix in SUFFIXES)
    ]


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of rendering the data set.

    Raises:
        InputError: a flag is out of its range.
    """
    height, width = catwalk.parse_size(args.size)
    number = len(catwalk.clip_tasks(args))
    frames = number * args.frames
    return planning.Plan(
        title=f"{number} synthetic clips of {args.frames} frames",
        work=(f"{frames:,} frames of {height}x{width}",),
        core_seconds=frames * height * width * planning.RENDER_SECONDS,
        written_bytes=frames * height * width * 2.0,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "catwalk",
        "Renders the synthetic fashion data set: clothed people in motion, each clip an\n"
        "MP4 with exact ground truth (NPZ) and the person's parameters (JSON).",
        EXAMPLES,
    )
    catwalk.add_arguments(parser, out=str, workers=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
