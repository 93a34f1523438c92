"""Resumable Ray tasks with progress, retries and a common stop."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from cluster.capacity import Allocation, Capacity, reserve
from cluster.worker_requests import StageRequest
from dreampose.training import StepReport
from jobs.common import driver
from jobs.common.failures import reason_of
from jobs.common.progress import ProgressChannel, StopSignal, start_channel, stop_on_sigterm

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
    capacity: Capacity,
    request: StageRequest | None = None,
    gpus: bool | None = None,
    wait: float | None = None,
) -> dict[str, str]:
    """Runs a task for each set of arguments; returns the reasons of those that failed.

    Args:
        work: what each does.
        arguments: of each task, by its name.
        name: of all of this, on the cluster.
        noun: what the tasks are, in the progress bar.
        capacity: of the cluster.
        request: of one task; by default the one of the stage finetune.
        gpus: a GPU for each task; by default where the cluster has, or may add, one.
        wait: seconds to wait for the first task's resources; None for no bound.

    Raises:
        InputError: no node type holds a task, or its resources are not there in time.
        Stopped: SIGTERM arrived; every task has saved its state.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    allocation = capacity.allocate("finetune", request, at_most=len(arguments), gpus=gpus)
    with reserve(capacity, allocation, limit=wait):
        channel = start_channel(name)
        submit = _submitter(work, allocation, channel)
    waiting = list(arguments)
    pending: dict[Any, str] = {}

    def fill() -> None:
        # No more than the cluster can ever hold: a million tasks would only burden the head.
        while waiting and len(pending) < allocation.workers:
            task = waiting.pop(0)
            pending[submit(task, arguments[task])] = task

    fill()

    def progress() -> driver.Progress:
        values = channel.read().values()
        all_steps = max((steps for _, steps in values), default=None)
        return driver.Progress(
            done=sum(step for step, _ in values),
            total=all_steps and all_steps * len(arguments),
            note=f"{len(arguments) - len(pending) - len(waiting)} of {len(arguments)} {noun}",
        )

    failures: dict[str, str] = {}
    with stop_on_sigterm(channel) as stopped, driver.bar(progress, unit="step"):
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(ready)
            try:
                ray.get(ready)
            except RayTaskError as error:
                failures[task] = reason_of(error.cause or error)
            except RayError as error:
                failures[task] = reason_of(error)
            fill()
    if stopped.is_set():
        raise driver.Stopped
    return failures


def _submitter(
    work: Work, allocation: Allocation, channel: ProgressChannel
) -> Callable[[str, Sequence[Any]], Any]:
    """Starts a task by its name and arguments, and returns its reference."""
    # Ray's types lack these options and their result.
    make_task: Any = ray.remote
    task = make_task(
        # Storage that hiccups and a GPU that others still occupy are worth another try; a dead
        # worker or node is tried again in any case. Anything else would fail again.
        max_retries=MAX_RETRIES,
        retry_exceptions=[OSError, torch.OutOfMemoryError],
        **allocation.remote_args,
    )(_do)
    return lambda name, values: task.remote(work, name, tuple(values), allocation.threads, channel)


def _do(
    work: Work, name: str, arguments: Sequence[Any], num_threads: int, channel: ProgressChannel
) -> None:
    torch.set_num_threads(num_threads)
    if channel.should_stop():
        return
    stop = StopSignal(channel)
    try:
        for report in work(*arguments, stop=stop):
            channel.put({name: (report.step, report.total)})
    finally:
        stop.close()
