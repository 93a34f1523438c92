#!/usr/bin/env python
"""Conversion of videos to training data with Ray Data."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose import recipes
from dreampose.errors import InputError
from dreampose.options import arguments
from jobs.common import driver, paths, planning, storage, video_list
from jobs.common.encoding import Encoder, Settings, identify_poses
from jobs.common.video_list import Video

if TYPE_CHECKING:
    from cluster.capacity import Allocation, Capacity, Reservation

CLIPS = "clips"
"""Folder of the Parquet files, a clip each."""
DONE = "_done"
"""Folder of Ray Data's checkpoint: the ids of clips whose rows are written."""
SETTINGS = "_settings.json"
"""What all rows of the data folder have in common."""
EXAMPLES = """\
  # Frames and poses, which is what the VAE stage of training needs
  jobs/preprocess.py --videos clips/train --out data/frames

  # The same clips for the base stage: poses are taken over, latents come from the model
  jobs/preprocess.py --data data/frames --out data/train --model runs/vae/model

  # All at once, from a list of videos (columns path, subject) on S3
  jobs/preprocess.py --videos s3://studio/manifest.csv --out s3://studio/data \\
      --model models/catwalk
"""


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(preprocess, _parser(), argv, plan=estimate)


def preprocess(args: argparse.Namespace) -> int:
    """Checks everything, then does what is not done yet; gives the exit code."""
    if args.workers is not None and args.workers < 1:
        raise InputError(f"workers must be at least 1, got {args.workers}")
    found = video_list.find(args.videos) if args.data is None else _earlier(args.data)
    settings = _settings(args)
    _check_same_settings(args.out, settings)
    done = _done(args.out)
    todo = [video for video in found if video.clip_id not in done]
    if todo:
        storage.write_text(f"{args.out}/{SETTINGS}", settings.to_json())
        with driver.ray_session(
            args.profile, local=paths.local_paths("preprocess", args)
        ) as capacity:
            _run(args, todo, settings, capacity)
    return _report(args.out, found, num_skipped=len(found) - len(todo))


def _run(
    args: argparse.Namespace, todo: Sequence[Video], settings: Settings, capacity: "Capacity"
) -> None:
    from cluster.capacity import reserve

    allocation = capacity.allocate(
        "preprocess",
        worker_requests.from_flags("preprocess", capacity.profile, args),
        workers=args.workers,
        at_most=len(todo),
        gpus=None if settings.model is not None else False,
    )
    with reserve(capacity, allocation, limit=args.wait_for_resources) as reservation:
        _encode(args.out, todo, settings, allocation, reservation)


def _encode(
    out: str,
    todo: Sequence[Video],
    settings: Settings,
    allocation: "Allocation",
    reservation: "Reservation",
) -> None:
    import ray

    from dreampose.data import SCHEMA
    from jobs.common.worklist import Worklist, checkpointing

    # Its plans are for debugging Ray; the progress bar below replaces them.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    filesystem, path = storage.resolve(out)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.checkpoint_config = checkpointing(filesystem, f"{path}/{DONE}", id_column="clip_id")
    num_before = len(_done(out))
    try:
        rows = ray.data.read_datasource(
            Worklist([asdict(video) for video in todo]),
            override_num_blocks=len(todo),
            **allocation.light_args(allocation.read_cpus),
        )
        rows = rows.map_batches(
            Encoder,
            fn_constructor_kwargs={"settings": settings, "num_threads": allocation.threads},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(**allocation.pool),
            **allocation.remote_args,
        )
        reservation.release()
        with driver.bar(lambda: _progress(out, total=num_before + len(todo)), unit="video"):
            rows.write_parquet(
                f"{path}/{CLIPS}",
                filesystem=filesystem,
                schema=SCHEMA,
                compression="zstd",
                ray_remote_args=allocation.light_args(allocation.write_cpus),
            )
    finally:
        context.checkpoint_config = None


def _progress(out: str, *, total: int) -> driver.Progress:
    return driver.Progress(done=len(_done(out)), total=total)


def _settings(args: argparse.Namespace) -> Settings:
    from dreampose import poses

    earlier = None
    if args.data is not None:
        earlier = json.loads(storage.read_text(f"{args.data}/{SETTINGS}"))
    recipe = recipes.recipe(args.recipe or "catwalk")
    model_fingerprint = None
    if args.model is not None:
        from dreampose.data import encoders_fingerprint
        from dreampose.options import loading

        pipe = loading.load(args.model)
        if args.recipe is not None and recipe.name != pipe.recipe.name:
            raise InputError(
                f"recipe must be the model's {pipe.recipe.name!r}, got {recipe.name!r}"
            )
        recipe, model_fingerprint = pipe.recipe, encoders_fingerprint(pipe)
    sizes = args.sizes
    if earlier:
        sizes = [f"{height}x{width}" for height, width in earlier["recipe"].get("sizes", [])]
        if args.sizes is not None and arguments.sizes(args.sizes, recipe) != arguments.sizes(
            sizes, recipe
        ):
            raise InputError(
                f"sizes must be those of --data, {' '.join(sizes) or 'none'}, "
                f"got {' '.join(args.sizes)}"
            )
    if sizes is not None:
        recipe = arguments.sizes(sizes, recipe)
    for name in ("name", "height", "width"):
        got = getattr(recipe, name)
        expected = earlier["recipe"][name] if earlier else got
        if expected != got:
            raise InputError(f"recipe must have {name} {expected!r} as --data has, got {got!r}")
    # What the data folder has may tell channels as well.
    known = earlier["pose"].partition(" of ")[0] if earlier else "blazepose"
    pose = args.pose or known
    if args.pose is None and "-" in pose:
        raise InputError(
            f"pose must be given for data whose poses come from a model, {pose}, got none"
        )
    if earlier and identify_poses(pose, recipe) != earlier["pose"]:
        raise InputError(f"pose must be what --data has, {earlier['pose']}, got {pose!r}")
    poses.estimator(pose, channels=recipe.pose_channels)
    return Settings(
        recipe=recipe,
        pose=pose,
        seed=earlier["seed"] if earlier else args.seed,
        model=None if args.model is None else storage.model_path(args.model),
        model_fingerprint=model_fingerprint,
    )


def _earlier(data: str) -> list[Video]:
    """The videos of an earlier data folder, each with the file of its row."""
    if not storage.is_file(f"{data}/{SETTINGS}"):
        raise InputError(f"data must be a folder that this job made, got {data!r}")
    return [
        Video(**row, row_file=file)
        for file in storage.parquet_files(f"{data}/{CLIPS}")
        for row in storage.read_table(file, ["clip_id", "path", "subject"]).to_pylist()
    ]


def _check_same_settings(out: str, settings: Settings) -> None:
    """A folder holds rows of one kind: a mixture would train without complaint."""
    if not storage.is_file(f"{out}/{SETTINGS}"):
        return
    old = json.loads(storage.read_text(f"{out}/{SETTINGS}"))
    new = json.loads(settings.to_json())
    changed = [key for key in new if old.get(key) != new[key]]
    if changed:
        raise InputError(
            f"out must be a new folder or one made with the same {' and '.join(changed)}, "
            f"got {out!r}"
        )


def _done(out: str) -> set[str]:
    """Ids of the clips whose rows are committed; a pending file is one that Ray did not commit."""
    return {
        clip_id
        for file in storage.parquet_files(f"{out}/{DONE}")
        if not file.endswith(".pending.parquet")
        for clip_id in storage.read_table(file, ["clip_id"])["clip_id"].to_pylist()
    }


def _report(out: str, found: Sequence[Video], *, num_skipped: int) -> int:
    """Prints what the folder now holds of the videos asked for; gives the exit code."""
    wanted = {video.clip_id for video in found}
    rows = [
        row
        for file in storage.parquet_files(f"{out}/{CLIPS}")
        for row in storage.read_table(file, ["clip_id", "path", "error"]).to_pylist()
        if row["clip_id"] in wanted
    ]
    rejected = sorted((row["path"], row["error"]) for row in rows if row["error"])
    for path, reason in rejected:
        print(f"rejected {path}: {reason}")
    print(
        f"{out}: {len(rows) - len(rejected)} clips, {len(rejected)} rejected videos; "
        f"{num_skipped} of them were done before"
    )
    return 0 if len(rows) == len(wanted) else 1


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of turning the videos into data.

    Raises:
        InputError: the videos, the recipe or the model are not valid.
    """
    recipe = planning.recipe_of(args)
    if args.data is not None:
        clips, frames = planning.data_size(args.data)
        if not clips:
            raise InputError(f"data must be a folder that this job made, got {args.data!r}")
    else:
        found = video_list.find(args.videos)
        clips, frames = len(found), sum(planning.video_frames(video.path) for video in found)
    views = recipe.num_crops + recipe.num_recolours if args.model is not None else 1
    costs = planning.costs_of(recipe)
    cost = planning.NO_COST if args.model is None else costs.cost("encode")
    notes = () if args.model is None else costs.notes(recipe)
    return planning.Plan(
        title=f"{clips:,} videos to data of {recipe.name}",
        work=(f"{frames:,} frames, {views} views of each",),
        notes=(*notes, planning.ROUGH),
        parameters=None if args.model is None else costs.parameters,
        cost=cost,
        flops=frames * views * cost.flops,
        core_seconds=frames * planning.POSE_SECONDS,
        read_bytes=frames * 3 * recipe.height * recipe.width * planning.MP4_SHARE,
        written_bytes=frames * planning.frame_bytes(recipe, encoded=args.model is not None),
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "preprocess",
        "Turns videos into training data: one Parquet row a clip, with its frames, pose maps and,\n"
        "given a model, its latents. A video that cannot be used becomes a row with the reason.",
        EXAMPLES,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--videos",
        help="folder (searched whole), quoted pattern, file, or manifest.csv (columns path and, "
        "if you like, subject); on this disk or any storage such as s3://",
    )
    source.add_argument(
        "--data",
        help="data folder that this job made before: its poses, crops and seed are taken over",
    )
    parser.add_argument("--out", required=True, help="data folder, on this disk or any storage")
    parser.add_argument(
        "--pose",
        type=arguments.estimator,
        metavar="NAME",
        help=f"{arguments.ESTIMATOR_HELP} (default: that of --data, else blazepose)",
    )
    parser.add_argument(
        "--model", help="model folder whose frozen parts encode; without it: frames and poses only"
    )
    parser.add_argument(
        "--recipe", help="catwalk, sd14 or a .json file; by default the model's, else catwalk"
    )
    arguments.add_sizes(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the random crops (%(default)s)")
    parser.add_argument(
        "--workers", type=int, help="videos worked on at once; by default what the cluster holds"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
