"""Command line, signals and Ray session of a job."""

import argparse
import contextlib
import contextvars
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cluster import worker_requests
from dreampose.errors import InputError
from dreampose.io.files import exclude_from_uploads
from dreampose.options.parser import CommandParser, run_command
from dreampose.options.progress import ProgressBar
from jobs.common import paths

if TYPE_CHECKING:
    from cluster.capacity import Capacity
    from jobs.common.planning import Plan

ROOT = Path(__file__).resolve().parents[2]
"""Folder that holds `dreampose`, `jobs` and `cluster`; workers import them from it."""

RAY_NOTE = """\
Where it runs: by itself on this machine, with every core; with RAY_ADDRESS set (for example
RAY_ADDRESS=auto) on that cluster; or submitted to one, from the repository's folder:
  ray job submit --working-dir . -- jobs/{name}.py ...
(with absolute paths or URIs that every node reaches: the uploaded folder is a temporary copy; add
--runtime-env-json '{{"env_vars": {{"RAY_JOB_STOP_WAIT_TIME_S": "30"}}}}' before the -- so that
`ray job stop` leaves time to save).
It can be stopped at any time (Ctrl-C, SIGTERM, even kill -9): the same command resumes it.
"""


def parser(name: str, description: str, examples: str) -> CommandParser:
    """A parser whose help ends with examples and with where the job runs.

    Args:
        name: of the job.
        description: for its help.
        examples: for its help.
    """
    made = CommandParser(
        prog=f"jobs/{name}.py",
        description=description,
        epilog=f"Examples:\n{examples}\n{RAY_NOTE.format(name=name)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_dry_run(made)
    worker_requests.add_flags(made)
    return made


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Adds `--dry-run` and `--prices`."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="do nothing: print what it will take (memory, work, storage, hours, dollars)",
    )
    parser.add_argument(
        "--prices", metavar="FILE", help="table of machines for --dry-run, instead of the own one"
    )


def run(
    job: Callable[[argparse.Namespace], int],
    arguments: argparse.ArgumentParser,
    argv: list[str] | None = None,
    *,
    plan: "Callable[[argparse.Namespace], Plan]",
) -> int:
    """Runs a job and returns its exit code: the job's own, or 2 with one line for bad input.

    With `--dry-run`, prints its plan instead.
    """
    args = arguments.parse_args(argv)
    code = 0

    def command() -> None:
        nonlocal code
        paths.check(Path(arguments.prog).stem, args)
        if args.dry_run:
            _show(plan(args), args.prices)
        else:
            code = job(args)

    try:
        return run_command(arguments.prog, command) or code
    except Stopped:
        print(f"{arguments.prog}: stopped; run it again to go on", file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        if "://" not in str(args.out):
            exclude_from_uploads(args.out)


def missing_extra(extra: str, error: ModuleNotFoundError) -> InputError:
    """The error for a job whose optional packages are not installed."""
    return InputError(
        f"the packages of the extra {extra!r} must be installed (pip install -e '.[{extra}]'), "
        f"got no {error.name}"
    )


def _show(plan: "Plan", prices: str | None) -> None:
    from jobs.common import planning

    machines = planning.read_machines(prices) if prices else planning.read_machines()
    print("\n".join(planning.lines(plan, machines)))


class Stopped(BaseException):
    """SIGTERM was received; a BaseException, so that error handlers let it pass."""


_private_session = contextvars.ContextVar("private_session", default=False)


def is_private_session() -> bool:
    """Whether `ray_session` started the Ray session for this job, so that it ends with the job."""
    return _private_session.get()


@contextlib.contextmanager
def ray_session(
    profile: str | None = None,
    *,
    log_to_driver: bool = True,
    local: "paths.LocalPaths | None" = None,
) -> "Generator[Capacity, None, None]":
    """A Ray session for the length of the block; yields what the cluster holds.

    A cluster is joined where `RAY_ADDRESS` names one (a submitted job has it), else a private one
    is started on this machine. A session that is already open is used and left open.

    Args:
        profile: local or cluster, of the requests; by default by who started Ray.
        log_to_driver: whether the workers' output is shown.
        local: local paths that every node must see.

    Raises:
        InputError: another node does not see a local path.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # A private cluster needs no token, and Ray would leave one in the home folder that
        # changes how later clusters start.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")

    import ray

    from cluster import capacity

    def inspect() -> "Capacity":
        if local is not None:
            paths.require_visible(local)
        started = capacity.started_ray()
        return capacity.inspect(worker_requests.choose_profile(profile, started_ray=started))

    if ray.is_initialized():
        yield inspect()
        return
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": log_to_driver}
    if not address:
        # Workers inherit this process's environment.
        os.environ["PYTHONPATH"] = path
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _object_store_bytes(),
        }
    elif "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # Not submitted, so nothing was uploaded: the code must lie at the same place everywhere.
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    logging.getLogger("ray").setLevel(logging.WARNING)
    ray.init(**options)
    # After `ray.init`, which installs a handler of its own.
    previous = signal.signal(signal.SIGTERM, _stop)
    token = _private_session.set(not address)
    try:
        yield inspect()
    finally:
        _private_session.reset(token)
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a job; `total` is None while it is unknown."""

    done: int
    total: int | None
    note: str = ""


@contextlib.contextmanager
def bar(read: Callable[[], Progress], *, unit: str) -> Generator[None, None, None]:
    """A progress bar for the length of the block, fed by calling `read` every second."""
    ended = threading.Event()
    with ProgressBar(unit=unit, mininterval=1 if sys.stderr.isatty() else 30) as progress:

        def show() -> None:
            now = read()
            if progress.total is None and now.total is not None:
                # Work of earlier runs must not count towards the speed.
                progress.total, progress.initial = now.total, now.done
                progress.n = now.done
            progress.set_postfix_str(now.note, refresh=False)
            progress.update(now.done - progress.n)

        def watch() -> None:
            while not ended.wait(1):
                show()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            show()


def _stop(_signal_number: int, _frame: FrameType | None) -> None:
    raise Stopped


def _object_store_bytes() -> int:
    """A twentieth of the memory, within 200 MB and 8 GB: rows pass through, none stays."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(200_000_000, min(memory // 20, 8_000_000_000))
