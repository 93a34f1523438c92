#!/usr/bin/env python
"""Training of one stage of a model with Ray Train."""

import argparse
import json
import logging
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import worker_requests
from dreampose import config, recipes
from dreampose.errors import InputError
from dreampose.options import arguments
from jobs.common import driver, paths, planning, storage

if TYPE_CHECKING:
    from cluster.capacity import Allocation, Capacity, Reservation

STAGES = ("vae", "encoder", "base")
RAY = "ray"
"""Folder of Ray Train's own state within a run: its checkpoints and their registry."""
RESULT = "result.json"
"""Written last: what was trained, so that a finished run is not done again."""
MAX_FAILURES = 3
EXAMPLES = """\
  # A model of one's own: first the VAE, then the encoder of photos, then the rest
  jobs/train.py --stage vae --data data/frames --val-data data/val --out runs/vae
  jobs/train.py --stage encoder --model runs/vae/model --data data/frames --out runs/encoder
  jobs/preprocess.py --data data/frames --model runs/encoder/model --out data/latents
  jobs/train.py --stage base --model runs/encoder/model --data data/latents --out runs/base

  # Eight GPUs, checkpoints on S3
  jobs/train.py --stage base --recipe sd14 --model s3-mount/start --data s3://studio/data \\
      --out s3://studio/runs/base --workers 8

  # Clips of any aspect in buckets; weights spread over the GPUs; curves on Weights & Biases
  jobs/train.py --stage base --model models/start --data data/train --sizes auto --out runs/base \\
      --workers 8 --shard --track tensorboard wandb

  # Watch it
  tensorboard --logdir runs
"""


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return driver.run(train, _parser(), argv, plan=estimate)


def train(args: argparse.Namespace) -> int:
    """Checks everything, then trains unless that is done; returns the exit code."""
    recipe = _check(args)
    out = storage.absolute(args.out)
    asked = {
        "stage": args.stage,
        "recipe": recipe.to_dict(),
        "data": storage.absolute(args.data),
        "model": args.model and storage.model_path(args.model),
        "warm_start": args.warm_start and storage.model_path(args.warm_start),
        "steps": args.steps,
        "seed": args.seed,
    }
    asked = json.loads(json.dumps(asked))
    if (
        storage.is_file(f"{out}/{RESULT}")
        and json.loads(storage.read_text(f"{out}/{RESULT}")) == asked
    ):
        print(f"{out}/model: trained before")
        return 0
    print(_data_line(args, recipe))
    with driver.ray_session(
        args.profile, log_to_driver=False, local=paths.local_paths("train", args)
    ) as capacity:
        values = _fit(args, recipe, out, capacity)
    if "input_error" in values:
        raise InputError(values["input_error"])
    if not values.get("finished"):
        raise driver.Stopped
    storage.write_text(f"{out}/{RESULT}", json.dumps(asked, indent=1) + "\n")
    print(f"{out}/model: trained, {values.get('total', 0)} steps")
    return 0


def _fit(
    args: argparse.Namespace, recipe: config.Recipe, out: str, capacity: "Capacity"
) -> dict[str, Any]:
    """Waits for the workers' resources, trains; returns the outcome."""
    from cluster.capacity import reserve

    allocation = capacity.allocate(
        "train",
        worker_requests.from_flags("train", capacity.profile, args),
        workers=args.workers,
        at_least=args.min_workers or args.workers,
        gpus=args.gpus,
    )
    if args.shard and not allocation.gpus:
        raise InputError("shard must be used with a GPU for each worker, got none")
    needed = args.min_workers or args.workers
    with reserve(
        capacity, allocation, workers=needed, limit=args.wait_for_resources
    ) as reservation:
        return _run_trainer(args, recipe, out, allocation, reservation)


def _run_trainer(
    args: argparse.Namespace,
    recipe: config.Recipe,
    out: str,
    allocation: "Allocation",
    reservation: "Reservation",
) -> dict[str, Any]:
    """Runs Ray Train to its end; returns its outcome, empty where it was stopped."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.common.progress import start_channel, stop_on_sigterm
    from jobs.common.training_options import TrainingOptions
    from jobs.common.training_worker import outcome_file, work

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    _sweep(out)
    storage.delete_file(outcome_file(out))
    channel = start_channel()
    options = TrainingOptions(
        stage=args.stage,
        recipe=recipe,
        data=storage.absolute(args.data),
        val_data=args.val_data and storage.absolute(args.val_data),
        out=out,
        model=args.model and storage.model_path(args.model),
        warm_start=args.warm_start and storage.model_path(args.warm_start),
        max_steps=args.steps,
        seed=args.seed,
        checkpoint_every=args.checkpoint_every,
        validate_every=args.validate_every,
        num_threads=allocation.threads,
        shard=args.shard,
        track=tuple(args.track),
        precision=args.precision,
        savings=arguments.savings(args),
        data_cache=args.data_cache,
    )
    trainer = TorchTrainer(
        work,
        train_loop_config={"options": options, "channel": channel},
        scaling_config=ScalingConfig(
            # Elastic: it begins with what there is, and a lost node costs its workers alone.
            num_workers=(args.min_workers, args.workers) if args.min_workers else args.workers,
            use_gpu=allocation.gpus,
            resources_per_worker=allocation.worker.bundle,
            label_selector=dict(allocation.labels) or None,
        ),
        run_config=RunConfig(
            name=RAY,
            storage_path=out,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )

    def progress() -> driver.Progress:
        values = channel.read()
        note = f"loss {values['loss']:.4f}" if "loss" in values else "starting"
        return driver.Progress(done=values.get("step", 0), total=values.get("total"), note=note)

    reservation.release()
    with stop_on_sigterm(channel), driver.bar(progress, unit="step"):
        trainer.fit()
    outcome = outcome_file(out)
    return json.loads(storage.read_text(outcome)) if storage.is_file(outcome) else {}


def _data_line(args: argparse.Namespace, recipe: config.Recipe) -> str:
    """Which reader of the data runs, chosen by their size."""
    from dreampose.data.streaming import data_bytes
    from dreampose.training import columns_of

    size = data_bytes(args.data, columns_of(args.stage, recipe))
    if size <= args.data_cache:
        return f"data: {size / 1e9:.3g} GB, kept by each worker"
    return f"data: {size / 1e9:.3g} GB, streamed within {args.data_cache / 1e9:.3g} GB a worker"


def _sweep(out: str) -> None:
    """Deletes checkpoints that a killed run wrote but Ray never registered."""
    snapshot = f"{out}/{RAY}/checkpoint_manager_snapshot.json"
    known = storage.read_text(snapshot) if storage.is_file(snapshot) else ""
    for name in storage.folders(f"{out}/{RAY}"):
        if name.startswith("checkpoint_") and name not in known:
            storage.delete_folder(f"{out}/{RAY}/{name}")


def _check(args: argparse.Namespace) -> config.Recipe:
    """Checks what can be checked before Ray starts; returns the recipe.

    Raises:
        InputError: stage, recipe, model or data are missing or do not match.
    """
    if args.stage not in STAGES:
        raise InputError(f"stage must be one of {', '.join(STAGES)}, got {args.stage!r}")
    for name in ("workers", "checkpoint_every", "validate_every"):
        if getattr(args, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(args, name)}")
    if args.min_workers is not None and not 1 <= args.min_workers <= args.workers:
        raise InputError(
            f"min_workers must be from 1 to --workers {args.workers}, got {args.min_workers}"
        )
    if args.steps is not None and args.steps < 1:
        raise InputError(f"steps must be at least 1, got {args.steps}")
    if args.shard and args.stage == "vae":
        raise InputError("stage must be encoder or base with --shard, got 'vae'")
    if args.shard and args.workers < 2:
        raise InputError(f"workers must be at least 2 with --shard, got {args.workers}")
    savings = arguments.savings(args)
    if args.shard and (savings.optimizer != "adamw" or savings.average_on_cpu):
        raise InputError("optimizer must be adamw, without --ema-on-cpu, with --shard")
    from dreampose.data import Dataset, encoders_fingerprint
    from dreampose.options import loading
    from dreampose.training import trackers

    trackers.check(args.track)
    pipe = None if args.model is None else loading.load(args.model)
    if args.warm_start is not None:
        loading.load(args.warm_start)
    if args.recipe is not None or pipe is None:
        recipe = recipes.recipe(args.recipe or "catwalk")
    else:
        recipe = pipe.recipe
    if args.sizes is not None:
        recipe = arguments.sizes(args.sizes, recipe)
    if pipe is not None and pipe.recipe.name != recipe.name:
        raise InputError(f"recipe must be the model's {pipe.recipe.name!r}, got {recipe.name!r}")
    if args.stage == "base" and pipe is None:
        raise InputError("model must be given for stage base (the data's latents are its VAE's)")
    for data in filter(None, (args.data, args.val_data)):
        values = Dataset(data, recipe=recipe, columns=())
        if args.stage == "base" and pipe is not None:
            expected = encoders_fingerprint(pipe)
            if values.fingerprint != expected:
                raise InputError(
                    f"data must be encoded by the model {args.model!r} ({expected}), got "
                    f"{values.fingerprint} in {data!r}: run jobs/preprocess.py with that model"
                )
    return recipe


def estimate(args: argparse.Namespace) -> planning.Plan:
    """Cost of a stage of training.

    Raises:
        InputError: stage, recipe, model or optimizer are not valid.
    """
    if args.stage not in STAGES:
        raise InputError(f"stage must be one of {', '.join(STAGES)}, got {args.stage!r}")
    savings = arguments.savings(args)
    recipe = planning.recipe_of(args)
    stage: config.StageConfig = getattr(recipe, f"{args.stage}_stage")
    clips, frames = planning.data_size(args.data)
    source = f"in {args.data}"
    if not frames:
        source = f"of UBC Fashion, since {args.data} holds no data yet"
        clips = planning.UBC_FASHION[0]
        frames = clips * planning.UBC_FASHION[1]
    items, noun = (clips, "clips") if args.stage == "encoder" else (frames, "frames")
    global_batch = stage.batch_size * stage.gradient_accumulation * args.workers
    steps = args.steps or stage.num_steps or stage.num_epochs * math.ceil(items / global_batch)
    precision = planning.precision_of(args)
    costs = planning.costs_of(recipe)
    cost = costs.cost(args.stage, savings=savings, precision=precision)
    # With several workers each keeps a second copy of the gradients to exchange them.
    cost = cost.plus(
        4 * cost.num_trained * ((args.workers > 1) - args.ema_on_cpu * bool(stage.ema_decay))
    )
    model_bytes = 4 * sum(costs.parameters.values())
    notes = costs.notes(recipe)
    if args.shard:
        notes += ("GPU memory is that without --shard, which spreads weights and moments",)
    return planning.Plan(
        title=f"stage {args.stage} of {recipe.name}, {args.workers} worker(s)",
        work=(f"{items:,} {noun} {source}", f"{steps:,} steps of {global_batch} samples"),
        notes=notes,
        parameters=costs.parameters,
        cost=cost,
        precision=precision,
        flops=cost.flops * steps * global_batch,
        read_bytes=frames * planning.frame_bytes(recipe, encoded=args.stage == "base"),
        written_bytes=2 * (cost.state_bytes + model_bytes) + model_bytes,
    )


def _parser() -> argparse.ArgumentParser:
    parser = driver.parser(
        "train",
        "Trains one stage of a model: vae (the autoencoder), encoder (the photo's tokens; only\n"
        "for models of one's own) or base (the denoiser). Leaves the model in OUT/model, that of\n"
        "the lowest validation loss in OUT/best, curves and sample sheets in OUT/tensorboard.",
        EXAMPLES,
    )
    parser.add_argument("--stage", required=True, help="vae, encoder or base")
    parser.add_argument("--data", required=True, help="data folder of jobs/preprocess.py")
    parser.add_argument(
        "--out", required=True, help="folder of the run, on this disk or any storage"
    )
    parser.add_argument(
        "--recipe", help="catwalk, sd14 or a .json file; by default the model's, else catwalk"
    )
    arguments.add_sizes(parser)
    parser.add_argument("--model", help="model folder to start from; random weights without it")
    parser.add_argument(
        "--warm-start",
        metavar="MODEL",
        help="model folder, of any recipe, whose weights are copied where name and shape agree "
        "(not the VAE's)",
    )
    parser.add_argument("--val-data", help="data folder of subjects that are not in --data")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument(
        "--min-workers",
        type=int,
        metavar="N",
        help="elastic training: begin and go on with as few, take up to --workers as nodes come",
    )
    parser.add_argument(
        "--gpus",
        action=argparse.BooleanOptionalAction,
        help="a GPU for each worker; by default where the cluster has, or may add, that many",
    )
    arguments.add_savings(parser)
    parser.add_argument(
        "--shard",
        action="store_true",
        help="spread weights, gradients and moments over the workers' GPUs (FSDP2), for models "
        "that do not fit on one; the result is the same",
    )
    parser.add_argument(
        "--track",
        nargs="*",
        default=["tensorboard"],
        metavar="NAME",
        help="where curves go: tensorboard (with sample sheets, in OUT/tensorboard), wandb or "
        "mlflow; several, or none (default: tensorboard)",
    )
    parser.add_argument(
        "--data-cache",
        type=worker_requests.parse_bytes,
        default="32GiB",
        metavar="SIZE",
        help="data that a worker keeps in memory and on its disk; larger data are streamed from "
        "storage clip by clip, within this much memory (default: %(default)s)",
    )
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, metavar="STEPS", help="(%(default)s)"
    )
    parser.add_argument(
        "--validate-every", type=int, default=500, metavar="STEPS", help="(%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
