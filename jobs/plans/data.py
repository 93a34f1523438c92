"""What making data will take. Knows videos, lists and clips, no modules."""

import argparse
from typing import TYPE_CHECKING

from dreampose.errors import InputError
from jobs import storage
from jobs.plans import rates

if TYPE_CHECKING:
    from dreampose.planning import Plan


def preprocess(args: argparse.Namespace) -> "Plan":
    """Of turning videos into training data.

    Raises:
        InputError: the videos, the recipe or the model are not there.
    """
    from dreampose import planning
    from dreampose.dataset.rows import ENCODE_BATCH
    from dreampose.latents import images_at_once
    from jobs import videos

    recipe = rates.recipe_of(args)
    if args.data is not None:
        num_clips, num_frames = _rows(args.data)
    else:
        found = videos.find(args.videos)
        num_clips, num_frames = len(found), sum(rates.video_frames(video.path) for video in found)
    views = recipe.num_crops + recipe.num_recolours
    count, cost = 1, None
    if args.model is not None:
        count = images_at_once(recipe.height, recipe.width, at_most=ENCODE_BATCH)
        cost = planning.encoding(recipe, batch_size=count)
    return planning.Plan(
        title=f"{num_clips:,} videos to data of {recipe.name}",
        work=(f"{num_frames:,} frames, {views if cost else 1} views of each",),
        how=(rates.TRACED, rates.RATES, rates.ROUGH) if cost else (rates.ROUGH,),
        parameters=cost.parameters if cost else {},
        flops=num_frames * views * cost.flops / count if cost else 0.0,
        peak_bytes=cost.peak_bytes if cost else 0.0,
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
    from dreampose.catwalk import cli
    from dreampose.catwalk.generate import tasks

    height, width = cli.parse_size(args.size)
    todo = tasks(identities=args.identities, frames=args.frames, split=args.split, seed=args.seed,
                 height=height, width=width)  # fmt: skip
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
