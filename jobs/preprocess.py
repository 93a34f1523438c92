#!/usr/bin/env python
"""Videos to training data, with Ray Data. Knows nothing of training."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import resources
from dreampose import config
from dreampose.config import Recipe
from dreampose.errors import InputError
from jobs import driver, storage, videos

CLIPS = "clips"
"""Folder of the Parquet files, a clip each."""
DONE = "_done"
"""Folder of Ray Data's checkpoint: the ids of clips whose rows are written."""
SETTINGS = "_settings.json"
EXAMPLES = """\
  # Poses and frames, which is what the VAE stage of training needs
  jobs/preprocess.py --videos clips/train --out data/frames --pose blazepose

  # The same clips for the base stage: poses are taken over, latents come from the model
  jobs/preprocess.py --data data/frames --out data/train --model runs/vae/model

  # All at once, from a list of videos (columns path, subject) on S3
  jobs/preprocess.py --videos s3://studio/manifest.csv --out s3://studio/data \\
      --pose blazepose --model models/catwalk
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every row of one data folder has in common."""

    recipe: Recipe
    pose: str
    model: str | None
    model_fingerprint: str | None
    seed: int

    def to_json(self) -> str:
        """For the data folder; where the model lies is not part of what it is."""
        values = asdict(self) | {"recipe": self.recipe.to_dict()}
        del values["model"]
        return json.dumps(values, indent=1)


class Encoder:
    """An actor that turns videos into rows; one that cannot be used becomes a row that says why."""

    def __init__(self, settings: Settings, num_threads: int) -> None:
        import torch

        from dreampose import poses
        from dreampose.pipeline import DreamPosePipeline

        torch.set_num_threads(num_threads)
        self.settings = settings
        self.estimator = poses.estimator(settings.pose)
        self.pipe = None
        if settings.model is not None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.pipe = DreamPosePipeline.from_pretrained(settings.model).to(device)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of `clip_id, path, subject` in, rows of training data out."""
        from dreampose.dataset import SCHEMA

        return pa.Table.from_pylist([self._row(**row) for row in batch.to_pylist()], schema=SCHEMA)

    def _row(self, *, clip_id: str, path: str, subject: str) -> dict[str, Any]:
        from dreampose import dataset, poses, video

        recipe = self.settings.recipe
        try:
            with storage.local_copy(path, sidecars=(".npz", ".json")) as file:
                clip = video.read(file)
                height, width = dataset.working_size(clip, recipe)
                motion = poses.extract(clip, self.estimator, height=height, width=width)
            row = dataset.encode_clip(
                clip,
                motion,
                recipe=recipe,
                pipe=self.pipe,
                seed=self.settings.seed,
                clip_id=clip_id,
                subject=subject,
            )
        except InputError as error:
            return dataset.error_row(
                clip_id=clip_id, path=path, subject=subject, recipe=recipe, error=str(error)
            )
        return row | {"path": path}


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(preprocess, _parser(), argv)


def preprocess(args: argparse.Namespace) -> int:
    """Checks everything, then does what is not done yet; gives the exit code."""
    found = videos.find(args.videos)
    settings = _settings(args)
    _check_same_settings(args.out, settings)
    done = {row["clip_id"] for row in storage.read_columns(f"{args.out}/{DONE}", ["clip_id"])}
    todo = [video for video in found if video.clip_id not in done]
    if todo:
        storage.write_text(f"{args.out}/{SETTINGS}", settings.to_json())
        with driver.ray_session() as total:
            _run(args.out, todo, settings, total, args.workers)
    return _report(args.out, found, num_skipped=len(found) - len(todo))


def _run(
    out: str,
    todo: Sequence[videos.Video],
    settings: Settings,
    total: Mapping[str, float],
    workers: int | None,
) -> None:
    import ray

    from dreampose.dataset import SCHEMA
    from jobs.worklist import Worklist, checkpointing

    gpus = settings.model is not None and total.get("GPU", 0) > 0
    share = resources.preprocessing(total, num_videos=len(todo), workers=workers, gpus=gpus)
    resources.require(total, share)
    light = {"num_cpus": resources.LIGHT_CPUS}
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    filesystem, path = storage.resolve(out)
    context.checkpoint_config = checkpointing(filesystem, f"{path}/{DONE}", id_column="clip_id")
    try:
        rows = ray.data.read_datasource(
            Worklist([asdict(video) for video in todo]),
            override_num_blocks=len(todo),
            ray_remote_args=light,
        )
        rows = rows.map_batches(
            Encoder,
            fn_constructor_kwargs={"settings": settings, "num_threads": share.num_threads},
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=share.num_processes),
            **share.remote_args,
        )
        rows.write_parquet(
            f"{path}/{CLIPS}",
            filesystem=filesystem,
            schema=SCHEMA,
            compression="zstd",
            ray_remote_args=light,
        )
    finally:
        context.checkpoint_config = None


def _settings(args: argparse.Namespace) -> Settings:
    from dreampose import poses

    if args.pose not in poses.ESTIMATORS:
        raise InputError(f"pose must be one of {', '.join(poses.ESTIMATORS)}, got {args.pose!r}")
    if args.model is None:
        recipe, model_fingerprint = config.recipe(args.recipe or "catwalk"), None
    else:
        from dreampose.dataset import fingerprint
        from dreampose.pipeline import DreamPosePipeline

        pipe = DreamPosePipeline.from_pretrained(args.model)
        recipe, model_fingerprint = pipe.recipe, fingerprint(pipe.vae)
        if args.recipe is not None and config.recipe(args.recipe) != recipe:
            raise InputError(f"recipe must be the model's, {recipe.name!r}, got {args.recipe!r}")
    return Settings(
        recipe=recipe,
        pose=args.pose,
        model=args.model,
        model_fingerprint=model_fingerprint,
        seed=args.seed,
    )


def _check_same_settings(out: str, settings: Settings) -> None:
    """A folder holds rows of one kind; half of another would train without complaint."""
    if not storage.is_file(f"{out}/{SETTINGS}"):
        return
    old = json.loads(storage.read_text(f"{out}/{SETTINGS}"))
    new = json.loads(settings.to_json())
    changed = [key for key in new if old.get(key) != new[key]]
    if changed:
        raise InputError(
            f"out must be a new folder or one made with the same {' and '.join(changed)}, "
            f"got {out!r}, made with another"
        )


def _report(out: str, found: Sequence[videos.Video], *, num_skipped: int) -> int:
    """Prints what the folder holds of the videos asked for."""
    wanted = {video.clip_id for video in found}
    rows = [
        row
        for row in storage.read_columns(f"{out}/{CLIPS}", ["clip_id", "path", "error"])
        if row["clip_id"] in wanted
    ]
    rejected = sorted((row["path"], row["error"]) for row in rows if row["error"])
    for path, reason in rejected:
        print(f"rejected {path}: {reason}")
    print(
        f"{len(rows) - len(rejected)} clips in {out} ({num_skipped} videos were done before), "
        f"{len(rejected)} rejected"
    )
    return 0 if len(rows) == len(wanted) else 1


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "preprocess",
        "Turns videos into training data: one Parquet row a clip, with its frames, pose maps and, "
        "given a model, its latents. A video that cannot be used becomes a row with the reason.",
        EXAMPLES,
    )
    parser.add_argument(
        "--videos",
        required=True,
        help="folder (searched whole), pattern, file, or manifest.csv (columns path, subject)",
    )
    parser.add_argument("--out", required=True, help="data folder, on this disk or any storage")
    parser.add_argument(
        "--pose",
        default="blazepose",
        help="blazepose estimates poses; catwalk takes a catwalk clip's exact ones (%(default)s)",
    )
    parser.add_argument(
        "--model", help="model folder whose VAE encodes; without it: frames and poses only"
    )
    parser.add_argument(
        "--recipe", help="catwalk, sd14 or a .json file; the model's by default, else catwalk"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random crops (%(default)s)")
    parser.add_argument(
        "--workers", type=int, help="videos worked on at once; by default what the cluster holds"
    )
    return parser  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
