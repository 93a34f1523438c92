#!/usr/bin/env python
"""Rendering of a catalogue of videos through the Serve application.

The catalogue is checked before Ray starts; items that cannot be rendered fail alone. Work in
progress is kept in DIR/.work, so that a killed job resumes with the missing frames; finished
items are skipped.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.options import arguments
from jobs.catalog.output import Output
from jobs.catalog.table import Contents, read_catalog
from jobs.common import driver, paths, planning
from serve.config import Settings

EXAMPLES = """\
  jobs/render.py --model models/catwalk --catalog catalog.csv --out out/
  jobs/render.py --model models/catwalk --catalog catalog.csv --out out/ \\
      --subjects finetuned/ --replicas 4 --preset exact
"""
DESCRIPTION = """\
Render every item of a catalogue: DIR/ITEM.mp4, its first frame DIR/ITEM.png, a sheet of its
frames DIR/ITEM.jpg, DIR/ITEM.json that says what it was made from, and DIR/index.html to look
at and search them all. Items that cannot be rendered are in DIR/failed.csv with the reason;
correct it and pass that file as --catalog. The same command again renders only what is
not finished.

The catalogue is a CSV or Parquet file with the columns item, photos (several joined by ';', or
a list) and motion (a .npz motion file or a video), and optionally subject, seed, preset and
truth (the true video, shown beside the result). Paths are relative to the catalogue's folder or
to the current one; of a submitted job give absolute ones, on a disk that every node sees. What
has the same content under several names is read, extracted and rendered once.

Every video says that it is generated, in its tags and by an invisible watermark (python -m
dreampose verify VIDEO); with a certificate it is signed as well (C2PA).

An application that serves the same model and subjects is used where the cluster runs one (serve
run serve.app); otherwise the job starts its own and takes it down at the end.

Exit code: 0 all rendered, 1 some items failed, 2 bad input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(render, _parser(), list(argv) if argv is not None else None, plan=estimate)


def render(args: argparse.Namespace) -> int:
    """Checks the catalogue, renders unfinished items, writes the page; returns the exit code."""
    settings = Settings(
        model=args.model,
        subjects=args.subjects or "",
        replicas=args.replicas,
        chunk_size=args.chunk_size,
        frames_at_once=args.frames_at_once,
    )
    # Validate the size before files are read.
    settings.recipe(args.size)
    contents = Contents()
    output = Output(
        args.out,
        settings=settings,
        align=args.align,
        estimator=args.estimator,
        size=args.size,
        contents=contents,
        signer=arguments.signer(args),
    )
    catalog = read_catalog(args.catalog, settings=settings, preset=args.preset, contents=contents)
    items = catalog.items
    groups = output.unfinished(items)
    num_waiting = sum(map(len, groups))
    print(
        f"{len(items) + len(catalog.broken)} items, {len(items) - num_waiting} finished before, "
        f"{len(catalog.broken)} broken; {len(groups)} videos to render"
    )
    failures: dict[str, str] = {}
    if groups:
        # Serve's log would interrupt the progress bar; it remains in Serve's files.
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
        with driver.ray_session(
            args.profile, log_to_driver=False, local=paths.local_paths("render", args)
        ) as capacity:
            # Imported here: errors of a catalogue are reported without loading Ray.
            from jobs.catalog.rendering import render_items

            request = worker_requests.from_flags("sample", capacity.profile, args)
            failures = render_items(groups, output, capacity, request, wait=args.wait_for_resources)
    output.write_failed(items, catalog.broken, failures)
    failures = {line.name: line.reason for line in catalog.broken} | failures
    page = output.write_page(items, failures)
    for name, reason in failures.items():
        print(f"{name}: {reason}", file=sys.stderr)
    num_items = len(items) + len(catalog.broken)
    print(f"{num_items - len(failures)} rendered, {len(failures)} failed: {page}")
    return 1 if failures else 0


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of rendering the catalogue.

    Raises:
        InputError: the catalogue or the model is not valid.
    """
    settings = Settings(model=args.model, subjects=args.subjects or "", chunk_size=args.chunk_size)
    items = read_catalog(args.catalog, settings=settings, preset=args.preset).items
    recipe = settings.recipe(args.size)
    chunk = max(args.chunk_size, args.frames_at_once)
    costs = planning.costs_of(recipe)
    frames = Counter[str]()
    for item in items:
        frames[item.preset] += item.num_frames
    found: list[planning.Cost] = []
    work: list[str] = []
    for name, number in sorted(frames.items()):
        calls, branches = planning.sampling_of(recipe, name)
        found.append(
            costs.rendering(num_frames=number, num_calls=calls, branches=branches, chunk=chunk)
        )
        work.append(f"{number:,} frames with {name}, {calls} calls of the model for each")
    return planning.Plan(
        title=f"{len(items)} videos of {recipe.name}, {chunk} frames at once",
        work=tuple(work),
        notes=(*costs.notes(recipe), "replicas compute in float32"),
        parameters=costs.parameters,
        cost=planning.larger(planning.NO_COST, *found),
        flops=sum(cost.flops for cost in found),
        core_seconds=frames.total() * planning.POSE_SECONDS,
        read_bytes=4 * sum(costs.parameters.values()),
        # Finished chunks are raw frames until the video is written.
        written_bytes=frames.total() * 3 * recipe.height * recipe.width,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser("render", DESCRIPTION, EXAMPLES)
    arguments.add_model(parser)
    parser.add_argument("--catalog", required=True, type=Path, help="CSV or Parquet, see above")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to fill")
    parser.add_argument(
        "--subjects", metavar="DIR", help="what jobs/finetune.py wrote: a folder per subject"
    )
    arguments.add_preset(parser, default="balanced")
    parser.add_argument(
        "--replicas",
        type=arguments.positive,
        default=0,
        help="copies of the model side by side; by default one a GPU, else one a core up to 8; on "
        "a cluster as many as the work needs and the nodes can hold, up to 64",
    )
    arguments.add_chunk_size(parser)
    parser.add_argument(
        "--frames-at-once",
        type=arguments.positive,
        default=0,
        metavar="N",
        help="join chunks, of several videos too, into batches of up to N frames where presets and "
        "subjects agree: the same videos but for a grey level or two; by default none is joined",
    )
    arguments.add_size(parser, what="the videos")
    arguments.add_align(parser)
    arguments.add_estimator(parser)
    arguments.add_certificate(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
