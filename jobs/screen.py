#!/usr/bin/env python
"""Selection of videos good enough to train on, with Ray Data."""

import argparse
import csv
import hashlib
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.errors import InputError
from dreampose.options import arguments
from jobs.common import driver, paths, planning, storage, video_list
from jobs.common.failures import reason_of
from jobs.common.video_list import Video, is_photo_set

if TYPE_CHECKING:
    from cluster.capacity import Capacity
    from dreampose.data.screening import ScreeningLimits

MEASURES = "measures"
"""Folder of the measurements, one JSON file per video."""
EXAMPLES = """\
  # What is kept is a manifest for jobs/preprocess.py; report.md says what was dropped and why
  jobs/screen.py --videos data/ubc/train.csv --out data/ubc/screened
  jobs/preprocess.py --videos data/ubc/screened/kept.csv --out data/train

  # Other limits: nothing is measured again
  jobs/screen.py --videos data/ubc/train.csv --out data/ubc/screened --smallest 512 --most-cuts 1
"""
_HELP = {
    "smallest": "least pixels of the shorter side",
    "shortest": "least seconds",
    "most_people": "people in one frame, at the most",
    "coverage": "least share of frames with a person",
    "whole": "least share of frames with a person from head to foot",
    "most_cuts": "cuts, at the most",
    "nearest": "videos whose perceptual hashes differ in a smaller share of bits are duplicates; "
    "0 keeps them",
}


class Worker:
    """Measures one video per row; its file marks it as done."""

    def __init__(self, out: str, num_threads: int) -> None:
        from dreampose.data.screening import Screener

        self.out = out
        self.screener = Screener(num_threads=num_threads)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Measures the videos of a batch; returned rows only have paths."""
        errors = batch.get("error", [""] * len(batch["path"]))
        for clip_id, path, error in zip(batch["clip_id"], batch["path"], errors, strict=True):
            values = {"error": error} if error else self._measure(path)
            storage.write_text(_file(self.out, clip_id), json.dumps(values) + "\n")
        return {"path": list(batch["path"])}

    def _measure(self, path: str) -> dict[str, Any]:
        from dreampose.io import video

        try:
            with storage.local_copy(path) as file:
                return asdict(self.screener(video.VideoReader(file)))
        except Exception as error:  # noqa: BLE001 - one odd file must not end the job
            return {"error": reason_of(error)}


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(screen, _parser(), argv, plan=estimate)


def screen(args: argparse.Namespace) -> int:
    """Measures missing videos, applies the limits, writes lists; returns the exit code."""
    from dreampose.data.screening import VideoStatistics, rejection_reasons

    limits, found = check(args)
    out = storage.absolute(args.out)
    todo = [video for video in found if not storage.is_file(_file(out, video.clip_id))]
    if todo:
        with driver.ray_session(args.profile, local=paths.local_paths("screen", args)) as capacity:
            _run(args, out, todo, capacity)
    read = {video.clip_id: json.loads(storage.read_text(_file(out, video.clip_id)))
            for video in found}  # fmt: skip
    measures = {
        name: VideoStatistics.from_dict(values)
        for name, values in read.items()
        if "error" not in values
    }
    reasons = rejection_reasons(measures, limits)
    reasons |= {name: [f"unreadable: {values['error']}"] for name, values in read.items()
                if "error" in values}  # fmt: skip
    write_lists(out, found, reasons, asdict(limits))
    num_kept = sum(not reasons[video.clip_id] for video in found)
    print(f"{args.out}: {num_kept} of {len(found)} videos kept; see report.md for the others")
    return 0


def check(args: argparse.Namespace) -> "tuple[ScreeningLimits, list[Video]]":
    """Limits and videos of the job.

    Raises:
        InputError: a limit is out of range, or there are no videos.
    """
    from dreampose.data.screening import ScreeningLimits

    limits = ScreeningLimits(**{name: getattr(args, name) for name in _HELP})
    found = video_list.find(args.videos)
    sets = [video.clip_id for video in found if is_photo_set(video.path) and not video.error]
    if sets:
        raise InputError(f"videos must be videos, got a set of photos, {sets[0]!r}")
    return limits, found


def _run(args: argparse.Namespace, out: str, todo: Sequence[Video], capacity: "Capacity") -> None:
    import ray

    from cluster.capacity import reserve
    from jobs.common.worklist import Worklist

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    allocation = capacity.allocate(
        "screen",
        worker_requests.from_flags("screen", capacity.profile, args),
        workers=args.workers,
        at_most=len(todo),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.read_datasource(
        Worklist([asdict(video) for video in todo]),
        override_num_blocks=len(todo),
        **allocation.light_args(allocation.read_cpus),
    ).map_batches(
        Worker,
        fn_constructor_kwargs={"out": out, "num_threads": allocation.threads},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(**allocation.pool),
        **allocation.remote_args,
    )

    def progress() -> driver.Progress:
        done = sum(storage.is_file(_file(out, video.clip_id)) for video in todo)
        return driver.Progress(done=done, total=len(todo))

    with reserve(capacity, allocation, limit=args.wait_for_resources):
        pass
    with driver.bar(progress, unit="video"):
        for _ in rows.iter_batches(batch_size=1):
            pass


def _file(out: str, clip_id: str) -> str:
    return f"{out}/{MEASURES}/{hashlib.sha256(clip_id.encode()).hexdigest()[:24]}.json"


def write_lists(
    out: str,
    found: Sequence[Video],
    reasons: Mapping[str, Sequence[str]],
    limits: Mapping[str, float],
) -> None:
    """Writes kept.csv (a manifest), dropped.csv (with reasons) and report.md."""
    kept = [video for video in found if not reasons[video.clip_id]]
    dropped = [video for video in found if reasons[video.clip_id]]
    _write_csv(f"{out}/kept.csv", ("path", "subject"), [(v.path, v.subject) for v in kept])
    _write_csv(
        f"{out}/dropped.csv",
        ("path", "subject", "reasons"),
        [(v.path, v.subject, "; ".join(reasons[v.clip_id])) for v in dropped],
    )
    counts = Counter(
        # "duplicate of NAME" and "cuts: 2, …" are counted by what comes first.
        reason.partition(" of ")[0] if reason.startswith("duplicate") else reason.partition(":")[0]
        for video in dropped
        for reason in reasons[video.clip_id]
    )
    lines = [
        "# Videos kept and dropped",
        "",
        f"{len(kept)} of {len(found)} videos are kept. "
        f"Asked: {', '.join(f'{name} {value:g}' for name, value in limits.items())}.",
        "",
        "| reason | videos |",
        "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in counts.most_common()),
        "",
        "| dropped | why |",
        "|---|---|",
        *(f"| {video.clip_id} | {'; '.join(reasons[video.clip_id])} |" for video in dropped),
    ]
    storage.write_text(f"{out}/report.md", "\n".join(lines) + "\n")


def _write_csv(path: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    storage.write_text(path, text.getvalue())


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of measuring the videos.

    Raises:
        InputError: the videos are missing, or a limit is out of its range.
    """
    from dreampose.data.screening import NUM_SAMPLES

    _, found = check(args)
    frames = [planning.video_frames(video.path) for video in found]
    sampled = sum(min(NUM_SAMPLES, number) for number in frames)
    video_bytes = planning.UBC_FASHION[1] * 3 * 940 * 720 * planning.MP4_SHARE
    return planning.Plan(
        title=f"{len(found):,} videos to measure",
        work=(f"{sum(frames):,} frames for cuts, {sampled:,} of them for persons",),
        notes=(planning.ROUGH, "remote videos are assumed to be as long as the paper's"),
        core_seconds=sum(frames) * planning.SCREEN_SECONDS + sampled * planning.POSE_SECONDS,
        read_bytes=sum(
            video_bytes if "://" in video.path else Path(video.path).stat().st_size
            for video in found
        ),
        # A file of measurements each, and a line in a list.
        written_bytes=2_000.0 * len(found),
    )


def _parser() -> argparse.ArgumentParser:
    from dreampose.data.screening import ScreeningLimits

    parser = driver.parser(
        "screen",
        "Looks at videos before they become training data: resolution, length, one person, seen\n"
        "throughout and from head to foot, no cuts, no duplicates. Writes OUT/kept.csv, a\n"
        "manifest; OUT/dropped.csv and OUT/report.md say what was dropped and why.",
        EXAMPLES,
    )
    parser.add_argument(
        "--videos", required=True, help="folder, pattern, file or manifest, as for preprocess"
    )
    parser.add_argument("--out", required=True, help="folder to write, on this disk or any storage")
    for field in fields(ScreeningLimits):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if isinstance(field.default, int) else float,
            default=field.default,
            help=f"{_HELP[field.name]} (%(default)s)",
        )
    parser.add_argument(
        "--workers",
        type=arguments.positive,
        help="videos at once; by default what the cluster holds",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
