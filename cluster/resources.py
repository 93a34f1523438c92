"""What each stage asks of the cluster, in one place. Knows nothing of what the stages do.

Ray's quantities are logical: they bound how many processes run side by side. Every function takes
the cluster's totals (`ray.cluster_resources()`) and answers with one process's share.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreampose.errors import InputError

MAX_THREADS = "DREAMPOSE_MAX_THREADS"
"""Environment variable of whoever starts a job or the service: at most so many threads a process,
for machines that others use too. Not OpenMP's own, which Ray sets to 1 for submitted jobs."""

LIGHT_CPUS = 0.25
"""A task that only moves bytes: reading a video's path, writing a Parquet file."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process asks for, and how many of them fit side by side.

    num_cpus: logical CPUs; Ray wants whole numbers above 1. num_threads: what torch should use.
    """

    num_cpus: float
    num_gpus: float = 0.0
    num_processes: int
    num_threads: int

    @property
    def remote_args(self) -> dict[str, Any]:
        """Keyword arguments of `ray.remote`."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}


def preprocessing(
    total: Mapping[str, float], *, num_videos: int, workers: int | None, gpus: bool
) -> Share:
    """One actor that decodes, estimates poses and encodes; the reads and writes go beside it.

    Three quarters of a CPU each leave, on two cores, room for one read and one write.
    """
    num_cores = _cores(total)
    if gpus:
        num_gpus = max(1, int(total.get("GPU", 0)))
        count = workers or num_gpus
        return Share(
            num_cpus=_whole(num_cores / 2 / num_gpus),
            num_gpus=min(1.0, num_gpus / count),
            num_processes=min(count, max(1, num_videos)),
            num_threads=threads_each(num_cores, num_gpus),
        )
    count = min(workers or num_cores, max(1, num_videos))
    per_actor = (num_cores - 2 * LIGHT_CPUS) / max(count, num_cores)
    return Share(
        num_cpus=_whole(max(0.1, per_actor)),
        num_processes=count,
        num_threads=threads_each(num_cores, count),
    )


def training(total: Mapping[str, float], *, workers: int, gpus: bool) -> Share:
    """One worker of a data-parallel training; half of the CPUs stay free for everything else.

    Threads are counted on the cluster's average node, since torch uses real cores.
    """
    num_cores = _cores(total)
    return Share(
        num_cpus=_whole(max(0.1, num_cores / workers / 2)),
        num_gpus=1.0 if gpus else 0.0,
        num_processes=workers,
        num_threads=threads_each(num_cores, workers),
    )


def finetuning(total: Mapping[str, float], *, num_subjects: int, gpus: bool) -> Share:
    """One subject's task: a GPU of its own, or an equal part of the CPUs."""
    num_cores = _cores(total)
    if gpus:
        num_gpus = max(1, int(total.get("GPU", 0)))
        return Share(
            num_cpus=1,
            num_gpus=1,
            num_processes=min(num_gpus, max(1, num_subjects)),
            num_threads=threads_each(num_cores, num_gpus),
        )
    count = min(num_cores, max(1, num_subjects))
    return Share(
        num_cpus=_whole(num_cores / count),
        num_processes=count,
        num_threads=threads_each(num_cores, count),
    )


def sampling(total: Mapping[str, float], *, replicas: int | None) -> Share:
    """One sampler of the render service: a GPU, or a part of the cores.

    Half of the CPUs stay free for encoding, extraction and everything else. Without GPUs one
    thread each for as many samplers as cores uses the cores best, but each holds a model.
    """
    num_cores, num_gpus = _cores(total), int(total.get("GPU", 0))
    count = replicas or num_gpus or min(num_cores, 8)
    return Share(
        # Rounded down, so that all of them together still fit.
        num_cpus=_whole(max(0.01, math.floor(50 * num_cores / count) / 100)),
        num_gpus=math.floor(100 * min(1.0, num_gpus / count)) / 100,
        num_processes=count,
        num_threads=threads_each(num_cores, count),
    )


def require(total: Mapping[str, float], share: Share, *, at_least: int = 1) -> None:
    """Refuses what the cluster cannot give, since Ray would wait for it in silence.

    Raises:
        InputError: `at_least` such processes need more CPUs or GPUs than the cluster has.
    """
    for name, wanted in (("GPU", share.num_gpus), ("CPU", share.num_cpus)):
        need, have = wanted * at_least, total.get(name, 0.0)
        if need > have + 1e-6:
            raise InputError(
                f"the cluster must have at least {need:g} {name}s for {at_least} "
                f"process(es) of {wanted:g}, got {have:g}"
            )


def threads_each(num_cores: int, num_processes: int) -> int:
    """What torch should use in each of so many processes.

    An equal share of the cores, or what the environment allows.

    Raises:
        InputError: `MAX_THREADS` is no positive whole number.
    """
    share = max(1, num_cores // num_processes)
    limit = os.environ.get(MAX_THREADS, "")
    if not limit:
        return share
    if not limit.isdecimal() or int(limit) < 1:
        raise InputError(f"{MAX_THREADS} must be a whole number of at least 1, got {limit!r}")
    return min(share, int(limit))


def _whole(cpus: float) -> float:
    """Ray takes fractions below one and whole numbers above; rounded down, so that all fit."""
    return float(math.floor(cpus)) if cpus >= 1 else math.floor(cpus * 100) / 100


def _cores(total: Mapping[str, float]) -> int:
    return max(1, int(total.get("CPU", 1)))
