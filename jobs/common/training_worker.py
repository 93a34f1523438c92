"""What each process of a training does: the plain loop of `dreampose.training`, reported to Ray.

Knows nothing of losses. Everything that must outlive the process goes through `ray.train.report`.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train

from dreampose.config import Recipe, Savings
from dreampose.errors import InputError
from dreampose.training import StepReport
from jobs.common import storage
from jobs.common.progress import StopWatch


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to train; see `dreampose.training.train` for the fields it takes as they are.

    out: folder or URI of the run. num_threads: of torch in each worker. shard: spread the weights
    over the workers. track: names of experiment trackers. precision: 'auto', 'fp32' or 'bf16'.
    """

    stage: str
    recipe: Recipe
    data: str
    val_data: str | None
    out: str
    model: str | None
    warm_start: str | None
    max_steps: int | None
    seed: int
    checkpoint_every: int
    validate_every: int
    num_threads: int
    shard: bool
    track: tuple[str, ...]
    precision: str
    savings: Savings


def work(config: dict[str, Any]) -> None:
    """Ray Train's loop: trains, reports, and from rank 0 puts up the finished model.

    Bad input that only shows here ends the loop with a word on the board: Ray would try again.
    """
    order: Order = config["order"]
    board = config["board"]
    rank = ray.train.get_context().get_world_rank()
    # The name is fixed so that what a killed process left behind is found and cleared away.
    key = hashlib.sha256(order.out.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"dreampose-{key}-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    stop = StopWatch(board)
    try:
        _train(order, board, stop, folder, is_first=rank == 0)
    except InputError as error:
        board.put.remote({"input_error": str(error)})
    finally:
        stop.close()
        shutil.rmtree(folder, ignore_errors=True)


def _train(order: Order, board: Any, stop: StopWatch, folder: Path, *, is_first: bool) -> None:
    import torch
    from accelerate import Accelerator

    from dreampose import training
    from dreampose.training import distributed, trackers
    from dreampose.training.memory import mixed_precision
    from jobs.common.sample_sheets import Sheets, is_point

    torch.set_num_threads(order.num_threads)
    # TensorBoard is written by `Sheets`, which puts pictures beside the curves, on any storage.
    others: list[Any] = [name for name in order.track if name != "tensorboard"]
    accelerator = Accelerator(
        mixed_precision=mixed_precision(order.precision),
        fsdp_plugin=distributed.plugin() if order.shard else None,
        log_with=others or None,
    )
    if others:
        name = Path(order.out).name
        facts = {"stage": order.stage, "recipe": order.recipe.name, "seed": order.seed}
        run = f"{name}-{hashlib.sha256(order.out.encode()).hexdigest()[:8]}"
        trackers.start(accelerator, project="dreampose", run=run, facts=facts)
    _fetch_checkpoint(folder / "checkpoints")
    steps = training.train(
        order.stage,
        recipe=order.recipe,
        data=order.data,
        validation=order.val_data,
        out=folder,
        accelerator=accelerator,
        model=order.model,
        warm_start=order.warm_start,
        max_steps=order.max_steps,
        seed=order.seed,
        stop=stop,
        checkpoint_every=order.checkpoint_every,
        validate_every=order.validate_every,
        keep=1,
        savings=order.savings,
    )
    report = None
    with Sheets(order, enabled=is_first and "tensorboard" in order.track) as sheets:
        for report in steps:
            if is_first:
                facts = {"step": report.step, "total": report.total, "loss": report.loss}
                board.put.remote(facts)
                if others and is_point(report):
                    accelerator.log(trackers.scalars(report), step=report.step)
            if report.best is not None:
                storage.upload_folder(report.best, f"{order.out}/best", last="model_index.json")
            if report.checkpoint_due:
                # Only rank 0 has the checkpoint, but Ray wants every rank to report as often.
                _report(report)
            if is_first:
                # Pictures last: what was learned is safe by now.
                sheets.write(report)
    if others:
        accelerator.end_training()
    if is_first and (report is None or not report.stopped):
        storage.upload_folder(folder / "model", f"{order.out}/model", last="model_index.json")
        board.put.remote({"finished": True})


def _report(report: StepReport) -> None:
    checkpoint = None
    if report.checkpoint is not None:
        checkpoint = ray.train.Checkpoint.from_directory(str(report.checkpoint))
    facts = {"step": report.step, "loss": report.loss, "validation_loss": report.validation_loss}
    ray.train.report(facts, checkpoint=checkpoint)


def _fetch_checkpoint(folder: Path) -> None:
    """Puts the last checkpoint of the run, if there is one, where the loop looks for it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as source:
        step = json.loads((Path(source) / "state.json").read_text("utf-8"))["step"]
        shutil.copytree(source, folder / f"step_{step:08d}")
