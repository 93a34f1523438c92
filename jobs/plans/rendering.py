"""What rendering and scoring will take. Knows catalogues and clips, no modules."""

import argparse
from typing import TYPE_CHECKING

from jobs.plans import rates

if TYPE_CHECKING:
    from dreampose.planning import Plan


def render(args: argparse.Namespace) -> "Plan":
    """Of a catalogue of videos.

    Raises:
        InputError: the catalogue or the model is not there.
    """
    from dreampose import planning
    from jobs.catalog.table import read_catalog
    from serve.config import Settings

    settings = Settings(model=args.model, subjects=args.subjects or "", chunk_size=args.chunk_size)
    items = read_catalog(args.catalog, settings=settings, preset=args.preset).items
    recipe = settings.recipe(args.size)
    at_once = max(args.chunk_size, args.frames_at_once)
    frames = dict.fromkeys(sorted({item.preset for item in items}), 0)
    for item in items:
        frames[item.preset] += item.num_frames
    flops = 0.0
    most: planning.Cost | None = None
    work: list[str] = []
    for name, number in frames.items():
        scaled, calls = rates.sampling_of(recipe, name)
        found = planning.rendering(scaled, num_calls=calls, chunk_size=at_once)
        flops += found.flops / at_once * number
        most = rates.larger(most, found)
        work.append(f"{number:,} frames by {name}, {calls} calls of the model for each")
    assert most is not None
    num_frames = sum(frames.values())
    return planning.Plan(
        title=f"{len(items)} videos of {recipe.name}, {at_once} frames at once",
        work=tuple(work),
        how=(rates.TRACED, rates.RATES, "replicas compute in float32"),
        parameters=most.parameters,
        flops=flops,
        peak_bytes=most.peak_bytes,
        scratch_bytes=most.scratch_bytes,
        core_seconds=num_frames * rates.POSE_SECONDS,
        read_bytes=4 * sum(most.parameters.values()),
        # Finished chunks lie there as plain frames until the video is written.
        written_bytes=num_frames * 3 * recipe.height * recipe.width,
    )


def evaluate(args: argparse.Namespace) -> "Plan":
    """Of scoring clips against the true ones.

    Raises:
        InputError: the clips are not there.
    """
    from dreampose import metrics, planning
    from jobs.evaluation import clips

    pairs = clips.pair(clips.methods(args.pred), args.truth, common=args.common, size=args.size)
    chosen = metrics.choose(args.metrics)
    num_frames = sum(pair.num_frames for pair in pairs)
    num_values = sum(3 * pair.num_frames * pair.height * pair.width for pair in pairs)
    return planning.Plan(
        title=f"{len(pairs)} pairs of clips, {len(chosen)} scores",
        work=(f"{num_frames:,} pairs of frames",),
        how=(rates.ROUGH,),
        parameters={},
        core_seconds=num_frames * rates.SCORE_SECONDS * len(chosen),
        read_bytes=2 * num_values * rates.MP4_SHARE,
        written_bytes=1e6,
    )
