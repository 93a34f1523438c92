"""What making data will take. Knows videos, lists and clips, no modules."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dreampose.errors import InputError
from jobs.common import storage
from jobs.plans import rates

if TYPE_CHECKING:
    from dreampose.planning import Plan


def download(args: argparse.Namespace) -> "Plan":
    """Of fetching the files of lists; asks no server.

    Raises:
        InputError: a flag or a list is wrong.
    """
    from dreampose import planning
    from jobs import download as job
    from jobs.common import deepfashion
    from jobs.common.downloads import Fetcher, client

    out, lists = Path(args.out), job.lists_of(args)
    if args.deepfashion is not None:
        photos = sum(len(found) for *_, found in deepfashion.photo_sets(args.deepfashion))
        return planning.Plan(
            title="lists of DeepFashion's photos",
            work=(f"{photos:,} photos, none is fetched",),
            how=(f"they were counted in {str(args.deepfashion)!r}",),
            parameters={},
        )
    places = {given: job.place_of_list(given, out) for given in lists}
    known = [given for given, (_, url, path) in places.items() if "://" not in url or path.exists()]
    with client() as http:
        # Nothing is fetched, since all of these lists are there.
        entries = job.read_lists(known, out, Fetcher(http=http))
    remote = [entry for entry in entries if entry.is_remote]
    todo = [entry for entry in remote if not job.place_of(entry, out).exists()]
    number = len(todo)
    work = [f"{len(entries):,} files listed, {number:,} of them to be fetched"] if known else []
    for split, url, _ in (place for given, place in places.items() if given not in known):
        if args.ubc_fashion:
            number += job.PAPER[split]
            work.append(f"{job.PAPER[split]:,} files of {split!r}, as many as the paper has")
        else:
            work.append(f"files of {url}, which is not there yet: their number is unknown")
    return planning.Plan(
        title=f"files of {len(lists)} lists, {args.parallel} at once",
        work=tuple(work),
        how=(
            "lists do not say how large files are: what they take is unknown until they are there",
            f"hours: {rates.FETCH_SECONDS:g} s a file, a guess, and a pause of {args.pause:g} s "
            "after each; no tries but the first, no transfer of an unknown list",
        ),
        parameters={},
        waiting_seconds=number * (rates.FETCH_SECONDS + args.pause) / args.parallel,
        written_bytes=0.0 if len(known) == len(lists) and not todo else None,
    )


def screen(args: argparse.Namespace) -> "Plan":
    """Of looking at videos before they become data.

    Raises:
        InputError: the videos are not there, or a limit is out of its range.
    """
    from dreampose import planning
    from dreampose.data.screening import NUM_SAMPLES
    from jobs import screen as job

    _, found = job.check(args)
    frames = [rates.video_frames(video.path) for video in found]
    looked_at = sum(min(NUM_SAMPLES, number) for number in frames)
    return planning.Plan(
        title=f"{len(found):,} videos to look at",
        work=(
            f"{sum(frames):,} frames for cuts, {looked_at:,} of them for people",
            "those that were measured before are counted as well",
        ),
        how=(rates.ROUGH, "videos elsewhere are taken to be as long as the paper's"),
        parameters={},
        core_seconds=sum(frames) * rates.SCREEN_SECONDS + looked_at * rates.POSE_SECONDS,
        read_bytes=sum(_file_bytes(video.path) for video in found),
        # A file of measures each, and a line in a list.
        written_bytes=2_000.0 * len(found),
    )


def _file_bytes(path: str) -> float:
    """Of a video; as many as the paper's would have where it lies elsewhere."""
    if "://" not in path:
        return Path(path).stat().st_size
    return rates.UBC_FASHION[1] * 3 * 940 * 720 * rates.MP4_SHARE


def preprocess(args: argparse.Namespace) -> "Plan":
    """Of turning videos into training data.

    Raises:
        InputError: the videos, the recipe or the model are not there.
    """
    from dreampose import planning
    from dreampose.data.schema import ENCODE_BATCH
    from dreampose.models.vae import encode_batch_size
    from jobs.common import video_list

    recipe = rates.recipe_of(args)
    if args.data is not None:
        num_clips, num_frames = _rows(args.data)
    else:
        found = video_list.find(args.videos)
        num_clips, num_frames = len(found), sum(rates.video_frames(video.path) for video in found)
    views = recipe.num_crops + recipe.num_recolours
    count, cost = 1, None
    if args.model is not None:
        count = encode_batch_size(recipe.height, recipe.width, at_most=ENCODE_BATCH)
        cost = planning.encoding(recipe, batch_size=count)
    return planning.Plan(
        title=f"{num_clips:,} videos to data of {recipe.name}",
        work=(f"{num_frames:,} frames, {views if cost else 1} views of each",),
        how=(rates.TRACED, rates.RATES, rates.ROUGH) if cost else (rates.ROUGH,),
        parameters=cost.parameters if cost else {},
        flops=num_frames * views * cost.flops / count if cost else 0.0,
        peak_bytes=cost.peak_bytes if cost else 0.0,
        scratch_bytes=cost.scratch_bytes if cost else 0.0,
        core_seconds=num_frames * rates.POSE_SECONDS,
        read_bytes=num_frames * 3 * recipe.height * recipe.width * rates.MP4_SHARE,
        written_bytes=num_frames * rates.frame_bytes(recipe, encoded=cost is not None),
    )


def catwalk(args: argparse.Namespace) -> "Plan":
    """Of rendering the synthetic data set.

    Raises:
        InputError: a flag is out of its range.
    """
    from dreampose import planning
    from dreampose.cli import catwalk as cli

    height, width = cli.parse_size(args.size)
    todo = cli.plan(args)
    pixels = len(todo) * args.frames * height * width
    return planning.Plan(
        title=f"{len(todo)} synthetic clips of {args.frames} frames",
        work=(f"{len(todo) * args.frames:,} frames of {height}x{width}",),
        how=(rates.ROUGH,),
        parameters={},
        core_seconds=pixels * rates.RENDER_SECONDS,
        written_bytes=pixels * 2.0,
    )


def _rows(data: str) -> tuple[int, int]:
    """Clips and frames of a data folder."""
    counts: list[int] = [
        number or 0
        for file in storage.parquet_files(f"{data}/clips")
        for number in storage.read_table(file, ["num_frames"])["num_frames"].to_pylist()
    ]
    if not counts:
        raise InputError(f"data must be a folder that this job made, got {data!r}")
    return len(counts), sum(counts)
