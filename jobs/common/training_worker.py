"""Training loop of one Ray Train worker.

Everything that must outlive the process goes through `ray.train.report`.
"""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import ray.train

from dreampose.errors import InputError
from dreampose.io.folder_cache import local_folder
from dreampose.training import StepReport
from jobs.common import storage
from jobs.common.preemption import PreemptionSignal
from jobs.common.progress import ProgressChannel, StopSignal
from jobs.common.training_options import TrainingOptions


def outcome_file(out: str) -> str:
    """File of a run that holds its outcome: `finished` and `total` steps, or `input_error`."""
    return f"{out}/ray/outcome.json"


def work(config: dict[str, Any]) -> None:
    """Ray Train's loop: trains, reports, and uploads the finished model from rank 0.

    The outcome, a finished model or bad input that only shows here, is a file of the run: it must
    outlive this process and the progress actor. Bad input ends the loop, since Ray would retry it.
    """
    options: TrainingOptions = config["options"]
    channel: ProgressChannel = config["channel"]
    rank = ray.train.get_context().get_world_rank()
    # A fixed name, so that what a killed process left is found and deleted.
    key = hashlib.sha256(options.out.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"dreampose-{key}-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    stop = StopSignal(channel)
    try:
        _train(options, channel, stop, folder, is_first=rank == 0)
    except InputError as error:
        storage.write_text(outcome_file(options.out), json.dumps({"input_error": str(error)}))
    finally:
        stop.close()
        shutil.rmtree(folder, ignore_errors=True)


def _train(
    options: TrainingOptions,
    channel: ProgressChannel,
    stop: StopSignal,
    folder: Path,
    *,
    is_first: bool,
) -> None:
    import torch
    from accelerate import Accelerator

    from dreampose import training
    from dreampose.training import distributed, trackers
    from dreampose.training.memory import mixed_precision
    from jobs.common.sample_sheets import SampleSheets, is_point

    torch.set_num_threads(options.num_threads)
    # `SampleSheets` writes TensorBoard, with pictures beside the curves, on any storage.
    others: list[Any] = [name for name in options.track if name != "tensorboard"]
    accelerator = Accelerator(
        mixed_precision=mixed_precision(options.precision),
        fsdp_plugin=distributed.plugin() if options.shard else None,
        log_with=others or None,
    )
    if others:
        name = Path(options.out).name
        values = {"stage": options.stage, "recipe": options.recipe.name, "seed": options.seed}
        run = f"{name}-{hashlib.sha256(options.out.encode()).hexdigest()[:8]}"
        trackers.start(accelerator, project="dreampose", run=run, facts=values)
    _fetch_checkpoint(folder / "checkpoints")
    signal = PreemptionSignal(stop)
    steps = training.train(
        options.stage,
        recipe=options.recipe,
        data=options.data,
        validation=options.val_data,
        out=folder,
        accelerator=accelerator,
        model=options.model and local_folder(options.model),
        warm_start=options.warm_start and local_folder(options.warm_start),
        max_steps=options.max_steps,
        seed=options.seed,
        stop=signal,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
        keep=1,
        savings=options.savings,
        data_cache=options.data_cache,
    )
    report = None
    with SampleSheets(options, enabled=is_first and "tensorboard" in options.track) as sheets:
        for report in steps:
            if is_first:
                values = {"step": report.step, "total": report.total, "loss": report.loss}
                channel.put(values)
                if others and is_point(report):
                    accelerator.log(trackers.scalars(report), step=report.step)
            if report.best is not None:
                storage.upload_folder(report.best, f"{options.out}/best", last="model_index.json")
            if report.checkpoint_due:
                # Only rank 0 has the checkpoint, but Ray wants every rank to report as often.
                _report(report)
            if is_first:
                # Pictures last: the checkpoint is safe by now.
                sheets.write(report)
    if others:
        accelerator.end_training()
    if signal.preempted and report is not None and report.stopped:
        signal.wait_for_restart()
    if is_first and (report is None or not report.stopped):
        storage.upload_folder(folder / "model", f"{options.out}/model", last="model_index.json")
        total = report.total if report is not None else 0
        storage.write_text(
            outcome_file(options.out), json.dumps({"finished": True, "total": total})
        )


def _report(report: StepReport) -> None:
    checkpoint = None
    if report.checkpoint is not None:
        checkpoint = ray.train.Checkpoint.from_directory(str(report.checkpoint))
    values = {"step": report.step, "loss": report.loss, "validation_loss": report.validation_loss}
    ray.train.report(values, checkpoint=checkpoint)


def _fetch_checkpoint(folder: Path) -> None:
    """Copies the run's last checkpoint, if there is one, to where the loop looks for it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as source:
        step = json.loads((Path(source) / "state.json").read_text("utf-8"))["step"]
        shutil.copytree(source, folder / f"step_{step:08d}")
