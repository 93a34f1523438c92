"""What one worker of each stage asks Ray for."""

import argparse
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dreampose.errors import InputError

MAX_THREADS = "DREAMPOSE_MAX_THREADS"
"""Environment variable: at most so many threads a process, on machines that others use too. It is
separate from OpenMP's own, which Ray sets to 1 in submitted jobs."""
REQUESTS_FILE = "DREAMPOSE_REQUESTS"
"""Environment variable: a TOML file that replaces defaults, like the flag `--requests`."""
PROFILE = "DREAMPOSE_PROFILE"
"""Environment variable: local or cluster, like the flag `--profile`."""

LIGHT_CPUS = 0.1
"""A task or actor that moves a few bytes. Above 0, so that a head node of 0 CPUs runs none."""

GIB = 1024**3

Profile = Literal["local", "cluster"]


@dataclass(frozen=True, kw_only=True)
class WorkerRequest:
    """Resources that one process asks Ray for.

    Attributes:
        cpus: logical CPUs: a fraction below 1, or a whole number.
        gpus: share of one GPU, or a whole number; 0 for none.
        memory: bytes; 0 leaves memory out of the request.
    """

    cpus: float
    gpus: float = 0.0
    memory: int = 0

    def __post_init__(self) -> None:
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not math.isfinite(value) or value < 0 or (value > 1 and value != int(value)):
                raise InputError(
                    f"{name} must be a fraction of at most 1 or a whole number, got {value:g}"
                )
        if self.cpus == 0:
            raise InputError("cpus must be above 0, got 0 (such a worker would land on the head)")
        if self.memory < 0:
            raise InputError(f"memory must be at least 0 bytes, got {self.memory}")

    @property
    def bundle(self) -> dict[str, float]:
        """The request as Ray's resources, as a placement group takes them."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": float(self.memory)}
        return {name: amount for name, amount in amounts.items() if amount}

    @property
    def remote_args(self) -> dict[str, Any]:
        """The request as keyword arguments of `ray.remote`."""
        args: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        return args | ({"memory": self.memory} if self.memory else {})

    def __str__(self) -> str:
        shown = {name: f"{amount:g}" for name, amount in self.bundle.items() if name != "memory"}
        if self.memory:
            shown["memory"] = format_bytes(self.memory)
        return "{" + ", ".join(f"{name}: {amount}" for name, amount in shown.items()) + "}"


@dataclass(frozen=True, kw_only=True)
class StageRequest:
    """What a stage asks for: its workers, and what reads and writes beside them.

    Attributes:
        worker: one worker where the stage uses no GPU.
        gpu_worker: one worker where it does; None for a stage that never does.
        read_cpus: CPUs of one task that reads for the workers; 0 if there is none.
        write_cpus: CPUs of one task that writes what they made; 0 if there is none.
    """

    worker: WorkerRequest
    gpu_worker: WorkerRequest | None = None
    read_cpus: float = 0.0
    write_cpus: float = 0.0

    def request(self, *, gpus: bool) -> WorkerRequest:
        """The request of one worker, with or without a GPU."""
        return self.gpu_worker if gpus and self.gpu_worker is not None else self.worker

    @property
    def io_cpus(self) -> float:
        """CPUs that must stay free beside the workers, for one read and one write."""
        return self.read_cpus + self.write_cpus


def _request(cpus: float, gib: float = 0.0, *, gpus: float = 0.0) -> WorkerRequest:
    return WorkerRequest(cpus=cpus, gpus=gpus, memory=int(gib * GIB))


# A worker below one CPU leaves room on a node of one CPU for the reads and writes beside it.
CLUSTER: Mapping[str, StageRequest] = {
    "catwalk": StageRequest(worker=_request(0.75, 1), read_cpus=0.1),
    "screen": StageRequest(worker=_request(0.75, 1.5), read_cpus=0.1),
    "preprocess": StageRequest(
        worker=_request(0.75, 2),
        gpu_worker=_request(1, 4, gpus=0.5),
        read_cpus=0.1,
        write_cpus=0.15,
    ),
    "train": StageRequest(
        worker=_request(0.75, 2), gpu_worker=_request(1, 8, gpus=1), read_cpus=0.25
    ),
    "finetune": StageRequest(worker=_request(0.75, 2), gpu_worker=_request(1, 8, gpus=1)),
    "evaluate": StageRequest(
        worker=_request(0.75, 2), gpu_worker=_request(1, 4, gpus=0.5), read_cpus=0.1
    ),
    "sample": StageRequest(worker=_request(0.5, 2), gpu_worker=_request(1, 8, gpus=1)),
    "extract": StageRequest(worker=_request(0.25, 1)),
}
"""Profile of a cluster: constants of the stages, whatever nodes are up. Memory is that of the
small model without a GPU, and of Stable Diffusion's size with one."""

LOCAL: Mapping[str, StageRequest] = {
    "catwalk": StageRequest(worker=_request(0.5), read_cpus=0.1),
    "screen": StageRequest(worker=_request(0.5), read_cpus=0.1),
    "preprocess": StageRequest(
        worker=_request(0.5), gpu_worker=_request(0.5, gpus=0.5), read_cpus=0.1, write_cpus=0.15
    ),
    "train": StageRequest(worker=_request(0.25), gpu_worker=_request(0.5, gpus=1), read_cpus=0.1),
    "finetune": StageRequest(worker=_request(0.5), gpu_worker=_request(0.5, gpus=1)),
    "evaluate": StageRequest(
        worker=_request(0.5), gpu_worker=_request(0.5, gpus=0.5), read_cpus=0.1
    ),
    "sample": StageRequest(worker=_request(0.02), gpu_worker=_request(0.5, gpus=1)),
    "extract": StageRequest(worker=_request(0.1)),
}
"""Profile of one machine, from a single core on, that runs nothing else: requests are small, and
the number of workers and their threads follow from its cores."""

PROFILES: Mapping[str, Mapping[str, StageRequest]] = {"cluster": CLUSTER, "local": LOCAL}


def stage_request(stage: str, profile: Profile, *, file: str | Path | None = None) -> StageRequest:
    """The request of a stage, from its profile and a file of replacements.

    Args:
        stage: a key of `CLUSTER`.
        profile: whose constants.
        file: TOML, a table a stage (`[train]` with cpus, memory, read_cpus, write_cpus; its table
            `[train.gpu]` with cpus, gpus, memory); by default the one that `REQUESTS_FILE` names.

    Raises:
        InputError: the file cannot be read, or a table, key or value in it is none of these.
    """
    base = PROFILES[profile][stage]
    path = file or os.environ.get(REQUESTS_FILE)
    return _replaced(base, _read(Path(path)).get(stage, {}), name=stage) if path else base


def override(
    request: StageRequest,
    *,
    cpus: float | None = None,
    gpus: float | None = None,
    memory: int | None = None,
) -> StageRequest:
    """A stage's request with other numbers for a worker, with and without a GPU alike.

    Raises:
        InputError: a number is out of range, or `gpus` is given to a stage that uses none.
    """
    changes: dict[str, Any] = {"cpus": cpus, "memory": memory}
    changes = {name: value for name, value in changes.items() if value is not None}
    gpu_worker = request.gpu_worker
    if gpus is not None and gpu_worker is None:
        raise InputError(f"gpus-per-worker must be left out for a stage without GPUs, got {gpus:g}")
    if gpu_worker is not None:
        if gpus is not None and gpus <= 0:
            raise InputError(f"gpus-per-worker must be above 0, got {gpus:g}; see --no-gpus")
        gpu_worker = replace(gpu_worker, **changes, **({} if gpus is None else {"gpus": gpus}))
    return replace(request, worker=replace(request.worker, **changes), gpu_worker=gpu_worker)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags with which a job replaces its stage's request."""
    group = parser.add_argument_group("resources")
    group.add_argument(
        "--cpus-per-worker", type=float, metavar="N", help="CPUs of one worker (a constant)"
    )
    group.add_argument(
        "--gpus-per-worker", type=float, metavar="N", help="GPUs of one worker, or a share of one"
    )
    group.add_argument(
        "--memory-per-worker", type=_flag(parse_bytes), metavar="SIZE", help="for example 12GiB"
    )
    group.add_argument(
        "--requests", metavar="FILE", help=f"TOML of all stages' requests (or {REQUESTS_FILE})"
    )
    group.add_argument(
        "--profile",
        choices=("local", "cluster"),
        help="whose requests: local where the job starts Ray itself, cluster where it joins one "
        f"(or {PROFILE})",
    )
    group.add_argument(
        "--wait-for-resources",
        type=_flag(parse_duration),
        metavar="TIME",
        help="give up after so long without the first workers' resources, for example 15m; "
        "by default never",
    )


def from_flags(stage: str, profile: Profile, args: argparse.Namespace) -> StageRequest:
    """The request of a stage with what the flags of `add_flags` replace.

    Raises:
        InputError: a flag or the file holds what cannot be.
    """
    return override(
        stage_request(stage, profile, file=args.requests),
        cpus=args.cpus_per_worker,
        gpus=args.gpus_per_worker,
        memory=args.memory_per_worker,
    )


def choose_profile(given: str | None, *, started_ray: bool) -> Profile:
    """The profile: the given one, else the environment's, else by who started Ray.

    Raises:
        InputError: the name is not a profile's.
    """
    name = given or os.environ.get(PROFILE) or ("local" if started_ray else "cluster")
    if name not in PROFILES:
        raise InputError(f"profile must be local or cluster, got {name!r}")
    return "local" if name == "local" else "cluster"


def num_threads(request: WorkerRequest, profile: Profile, *, workers: int, cores: int) -> int:
    """What torch should use in one worker.

    Args:
        request: of the worker.
        profile: on a cluster the request's whole CPUs; on one machine an equal share of its cores.
        workers: side by side on that machine.
        cores: of that machine.

    Raises:
        InputError: `MAX_THREADS` is not a positive whole number.
    """
    share = cores // max(1, workers) if profile == "local" else int(request.cpus)
    limit = os.environ.get(MAX_THREADS, "")
    if limit and (not limit.isdecimal() or int(limit) < 1):
        raise InputError(f"{MAX_THREADS} must be a whole number of at least 1, got {limit!r}")
    return max(1, min(share, int(limit)) if limit else share)


def parse_bytes(text: str) -> int:
    """Bytes of a size such as 512MiB, 12GiB, 8GB or 1000.

    Raises:
        InputError: the text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", str(text), re.IGNORECASE)
    if match is None:
        raise InputError(f"size must be like 512MiB or 12GiB, got {text!r}")
    number, prefix, binary = match.groups()
    power = " KMGT".index(prefix.upper() or " ")
    return int(float(number) * (1024 if binary else 1000) ** power)


def format_bytes(number: float) -> str:
    """A size in GiB or MiB, for messages."""
    return f"{number / GIB:.3g}GiB" if number >= GIB else f"{number / 1024**2:.3g}MiB"


def parse_duration(text: str) -> float:
    """Seconds of a time such as 90, 90s, 15m or 2h.

    Raises:
        InputError: the text is not a time above 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(text))
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise InputError(f"time must be like 90s, 15m or 2h, got {text!r}")
    return seconds


def _flag(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """The parser of a value as argparse wants it: its own error keeps the sentence."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _read(path: Path) -> dict[str, Any]:
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"requests: cannot read {str(path)!r} ({error.strerror})") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"requests: {str(path)!r} is not TOML ({error})") from None
    for name, table in tables.items():
        if name not in CLUSTER or not isinstance(table, dict):
            raise InputError(
                f"requests: {name!r} in {str(path)!r} must be a table named after a stage "
                f"({', '.join(CLUSTER)})"
            )
        # Wrong values in it are an error for every job, not for its own alone.
        _replaced(CLUSTER[name], table, name=name)
    return tables


def _replaced(base: StageRequest, table: Mapping[str, Any], *, name: str) -> StageRequest:
    table = dict(table)
    gpu_table = table.pop("gpu", None)
    stage: dict[str, Any] = {
        key: _number(table.pop(key), f"{name}.{key}")
        for key in ("read_cpus", "write_cpus")
        if key in table
    }
    stage["worker"] = _worker(base.worker, table, name=name, keys=("cpus", "memory"))
    if gpu_table is not None:
        if base.gpu_worker is None or not isinstance(gpu_table, dict):
            raise InputError(f"requests: [{name}.gpu] must be left out (the stage uses no GPU)")
        stage["gpu_worker"] = _worker(
            base.gpu_worker, gpu_table, name=f"{name}.gpu", keys=("cpus", "gpus", "memory")
        )
    return replace(base, **stage)


def _worker(
    base: WorkerRequest, table: Mapping[str, Any], *, name: str, keys: tuple[str, ...]
) -> WorkerRequest:
    unknown = [key for key in table if key not in keys]
    if unknown:
        raise InputError(f"requests: [{name}] may have {', '.join(keys)}, got {unknown[0]!r}")
    changes: dict[str, Any] = {
        key: parse_bytes(value) if key == "memory" else _number(value, f"{name}.{key}")
        for key, value in table.items()
    }
    try:
        return replace(base, **changes)
    except InputError as error:
        raise InputError(f"requests: [{name}] {error}") from None


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InputError(f"requests: {name} must be a number of at least 0, got {value!r}")
    return float(value)
