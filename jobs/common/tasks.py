"""Resumable Ray tasks with progress, retries and a common stop."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cluster import resources
from cluster.resources import Share
from dreampose.training import StepReport
from jobs.common import driver
from jobs.common.failures import reason_of
from jobs.common.progress import ProgressActor, StopSignal, stop_on_sigterm

MAX_RETRIES = 3

Work = Callable[..., Iterator[StepReport]]
"""A function of its arguments and `stop` (by name: whether to save and end). Called again after it
was killed it resumes; called again when it is done it returns at once."""


def run(
    work: Work,
    arguments: Mapping[str, Sequence[Any]],
    *,
    name: str,
    noun: str,
    total: Mapping[str, float],
    gpus: bool | None = None,
) -> dict[str, str]:
    """Runs a task for each set of arguments; returns the reasons of those that failed.

    Args:
        work: what each does.
        arguments: of each task, by its name.
        name: of all of this, on the cluster.
        noun: what the tasks are, in the progress bar.
        total: the cluster's resources.
        gpus: a GPU for each task; by default where the cluster has one.

    Raises:
        InputError: the cluster is too small for one task.
        Stopped: SIGTERM arrived; every task has saved its state.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    use_gpu = total.get("GPU", 0) > 0 if gpus is None else gpus
    share = resources.finetuning(total, num_subjects=len(arguments), gpus=use_gpu)
    resources.require(total, share)
    actor: Any = ProgressActor.options(name=name).remote()
    pending = _submit(work, arguments, share, actor)

    def progress() -> driver.Progress:
        answer: dict[str, Any] = ray.get(actor.read.remote())
        values = answer.values()
        all_steps = max((steps for _, steps in values), default=None)
        return driver.Progress(
            done=sum(step for step, _ in values),
            total=all_steps and all_steps * len(arguments),
            note=f"{len(arguments) - len(pending)} of {len(arguments)} {noun}",
        )

    failures: dict[str, str] = {}
    with stop_on_sigterm(actor) as stopped, driver.bar(progress, unit="step"):
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ready)
            try:
                ray.get(ready)
            except RayTaskError as error:
                failures[task] = reason_of(error.cause or error)
            except RayError as error:
                failures[task] = reason_of(error)
    if stopped.is_set():
        raise driver.Stopped
    return failures


def _submit(
    work: Work, arguments: Mapping[str, Sequence[Any]], share: Share, actor: Any
) -> dict[Any, str]:
    # Ray's types lack these options and their result.
    make_task: Any = ray.remote
    task = make_task(
        # Storage that hiccups and a GPU that others still occupy are worth another try; a dead
        # worker or node is tried again in any case. Anything else would fail again.
        max_retries=MAX_RETRIES,
        retry_exceptions=[OSError, torch.OutOfMemoryError],
        **share.remote_args,
    )(_do)
    return {
        task.remote(work, name, tuple(values), share.num_threads, actor): name
        for name, values in arguments.items()
    }


def _do(work: Work, name: str, arguments: Sequence[Any], num_threads: int, actor: Any) -> None:
    torch.set_num_threads(num_threads)
    if ray.get(actor.should_stop.remote()):
        return
    stop = StopSignal(actor)
    try:
        for report in work(*arguments, stop=stop):
            # Fire and forget: the worker does not wait for the actor.
            actor.put.remote({name: (report.step, report.total)})
    finally:
        stop.close()
