#!/usr/bin/env python
"""Scoring of clips against the true ones with Ray Data."""

import argparse
import logging
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose.errors import InputError
from dreampose.options import arguments
from jobs.common import driver, paths, planning
from jobs.evaluation import clips

if TYPE_CHECKING:
    from cluster.capacity import Capacity
    from dreampose.metrics import Metric

SCORES = "scores"
"""Folder of what was measured, within the report's."""
EXAMPLES = """\
  # One method: report.md, report.csv, clips.csv and index.html in out/report
  jobs/evaluate.py --pred renders --truth clips/test --out out/report

  # Several side by side, people read off the clips' names (anna-walk.mp4, anna-turn.mp4)
  jobs/evaluate.py --pred copy=baselines/copy --pred finetuned=renders --truth clips/test \\
      --identity '^([^-]+)-' --out out/report

  # Truths of another size than the renders
  jobs/evaluate.py --pred renders --truth ubc/test --size 640x512 --out out/report

  # Published scores too: the folder holds vgg19-dcbb9e9d.pth and the others that are asked for
  jobs/evaluate.py --pred renders --truth clips/test --metrics all --weights backbones \\
      --out out/report
"""


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(evaluate, _parser(), argv, plan=estimate)


def evaluate(args: argparse.Namespace) -> int:
    """Validates, computes missing scores and writes the report; returns the exit code."""
    try:
        from dreampose import metrics
        from jobs.evaluation import report, report_page, scoring
    except ModuleNotFoundError as error:
        raise driver.missing_extra("metrics", error) from error

    for name, least in (("workers", 1), ("resamples", 2), ("set_resamples", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"{name.replace('_', '-')} must be at least {least}, got {value}")
    preds = clips.methods(args.pred)
    chosen = metrics.choose(args.metrics)
    pairs = clips.pair(preds, args.truth, common=args.common, size=args.size)
    notes: list[str] = []
    if args.size is not None:
        size = f"{args.size[0]}x{args.size[1]}"
        notes.append(f"All frames were brought to {size} pixels, whole (letterbox).")
    if without := clips.left_out(pairs, preds, args.truth):
        notes.append(f"Left out, since not all folders hold them: {', '.join(without)}.")
    if others := clips.other_rates(pairs):
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        notes.append(f"Frame by frame, although frame rates differ: {others[0]}{more}.")
    chosen = _require_sizes(pairs, chosen, {name.strip() for name in args.metrics.split(",")})
    people = clips.identities(
        list(dict.fromkeys(pair.clip for pair in pairs)), args.truth, args.identity
    )
    for note in notes:
        print(note)
    provided = args.weights
    if provided is not None and Path(provided).expanduser().is_dir():
        provided = str(Path(provided).expanduser().absolute())
    weights = metrics.Networks(provided).check(chosen)
    out = Path(args.out).expanduser().absolute()
    work = scoring.plan(pairs, chosen, weights)
    rows = scoring.todo(work, out / SCORES)
    print(
        f"{len(preds)} methods, {len(people)} clips of {len(set(people.values()))} people; "
        f"{len(pairs) - len(rows)} of {len(pairs)} pairs were scored before"
    )
    if rows:
        with driver.ray_session(
            args.profile, local=paths.local_paths("evaluate", args)
        ) as capacity:
            failed = _run(args, rows, out / SCORES, provided, capacity)
        if failed:
            for clip, reason in failed.items():
                print(f"rejected {clip}: {reason}")
            print(f"no report: {len(failed)} clips could not be scored")
            return 1
    found = report.collect(
        work,
        chosen,
        people,
        out / SCORES,
        resamples=args.resamples,
        set_resamples=args.set_resamples,
        seed=args.seed,
        notes=notes,
    )
    print(report_page.write(found, out, weights=weights))
    print(f"report: {out / 'index.html'}")
    return 0


def _run(
    args: argparse.Namespace,
    rows: Sequence[Mapping[str, str]],
    folder: Path,
    weights: str | None,
    capacity: "Capacity",
) -> dict[str, str]:
    """Computes scores; returns failed clips and their reasons."""
    import ray

    from cluster.capacity import reserve
    from jobs.common.worklist import Worklist
    from jobs.evaluation.scoring import Scorer

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    allocation = capacity.allocate(
        "evaluate",
        worker_requests.from_flags("evaluate", capacity.profile, args),
        workers=args.workers,
        at_most=len(rows),
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    scored = ray.data.read_datasource(
        Worklist(rows),
        override_num_blocks=len(rows),
        **allocation.light_args(allocation.read_cpus),
    ).map_batches(
        Scorer,
        fn_constructor_kwargs={
            "folder": str(folder),
            "weights": weights,
            "num_threads": allocation.threads,
            "device": "cuda" if allocation.gpus else "cpu",
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=allocation.workers),
        **allocation.remote_args,
    )
    num_done = 0
    failed: dict[str, str] = {}
    with reserve(capacity, allocation, limit=args.wait_for_resources):
        pass
    with driver.bar(lambda: driver.Progress(done=num_done, total=len(rows)), unit="clip"):
        for batch in scored.iter_batches(batch_size=1):
            num_done += len(batch["clip"])
            for clip, error in zip(batch["clip"], batch["error"], strict=True):
                if error:
                    failed[str(clip)] = str(error)
    return dict(sorted(failed.items()))


def _require_sizes(
    pairs: Sequence[clips.Pair], chosen: "Sequence[Metric]", named: Collection[str]
) -> "list[Metric]":
    """Scores that are defined for all clips; others of a group are dropped with a message.

    Raises:
        InputError: a score requested by name is not defined for all clips, or none is.
    """
    faults = {
        metric.name: fault
        for metric in chosen
        for fault in (_fault(metric, pair) for pair in pairs)
        if fault
    }
    defined = [metric for metric in chosen if metric.name not in faults]
    for name, fault in faults.items():
        if name in named or not defined:
            raise InputError(fault)
        print(f"without {name}: {fault}")
    return defined


def _fault(metric: "Metric", pair: clips.Pair) -> str | None:
    if pair.num_frames < metric.min_frames:
        return (
            f"{metric.name} must have clips of at least {metric.min_frames} frames, got "
            f"{pair.num_frames} in {str(pair.pred)!r}"
        )
    if min(pair.height, pair.width) < metric.min_size:
        return (
            f"{metric.name} must have frames of at least {metric.min_size} pixels a side, "
            f"got {pair.height}x{pair.width} in {str(pair.pred)!r}"
        )
    return None


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of scoring the clips.

    Raises:
        InputError: the clips do not match.
    """
    from dreampose import metrics

    pairs = clips.pair(clips.methods(args.pred), args.truth, common=args.common, size=args.size)
    chosen = metrics.choose(args.metrics)
    frames = sum(pair.num_frames for pair in pairs)
    values = sum(3 * pair.num_frames * pair.height * pair.width for pair in pairs)
    return planning.Plan(
        title=f"{len(pairs)} pairs of clips, {len(chosen)} scores",
        work=(f"{frames:,} pairs of frames",),
        core_seconds=frames * planning.SCORE_SECONDS * len(chosen),
        read_bytes=2 * values * planning.MP4_SHARE,
        written_bytes=1e6,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "evaluate",
        "Scores clips against the true ones and writes a report: tables with intervals (Markdown,\n"
        "CSV) and a page with curves and the best and worst clips. Clips are MP4s or folders of\n"
        "PNGs, of any method; those of the same name belong together.",
        EXAMPLES,
    )
    parser.add_argument(
        "--pred",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="clips of a method; may be given several times, for methods side by side",
    )
    parser.add_argument("--truth", required=True, metavar="DIR", help="the true clips")
    parser.add_argument("--out", required=True, metavar="REPORT", help="folder of the report")
    parser.add_argument(
        "--common",
        action="store_true",
        help="score the clips that all of the folders hold and name the others in the report, "
        "instead of refusing",
    )
    parser.add_argument(
        "--size",
        type=arguments.size,
        metavar="HxW",
        help="bring all frames to this height and width, whole (letterbox), before they are "
        "compared, for truths of another size than the renders; by default both must have one size",
    )
    parser.add_argument(
        "--metrics",
        default="pixels,lite",
        help="scores or groups of them (pixels, published, lite, all), separated by commas: l1, "
        "psnr, ssim, tde, static, vgg, lpips, fid, fid-vid, fvd-16f, aed, lpips-lite, fid-lite, "
        "fvd-lite; of a group, those that the clips are too short or small for are left out "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        metavar="DIR",
        help="folder or hub id (owner/name) with the weights that published scores need",
    )
    parser.add_argument(
        "--identity",
        metavar="RULE",
        help="who is seen in a clip: column:NAME of the truth's manifest.csv, or a regular "
        "expression whose first group finds the person in the clip's name; by default the column "
        "subject where there is a manifest, else every clip shows another person",
    )
    parser.add_argument(
        "--resamples", type=int, default=2000, help="of the bootstrap of means (%(default)s)"
    )
    parser.add_argument(
        "--set-resamples",
        type=int,
        default=20,
        help="of the bootstrap of FID and its kin, seconds each (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    parser.add_argument(
        "--workers", type=int, help="clips scored at once; by default what the cluster holds"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
