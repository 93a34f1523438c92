"""Actor that carries progress to the driver and stop requests to workers.

Nothing depends on it: it may die with its node and come back empty, and no call to it fails a job.
What a job must remember is in its output folder.
"""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

POLL_SECONDS = 1.0
CALL_SECONDS = 10.0
"""Seconds to wait for an answer of the actor, which may be restarting."""
HEAD = "node:__internal_head__"
"""Resource that Ray gives to the head node."""


class ProgressActor:
    """Values that workers report, and whether they should stop."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._stop = False

    def put(self, values: Mapping[str, Any]) -> None:
        """Replaces the values of these names."""
        self._values.update(values)

    def read(self) -> dict[str, Any]:
        """All reported values."""
        return self._values

    def ask_to_stop(self) -> None:
        """Asks all workers to save and end."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether workers should save and end."""
        return self._stop


class ProgressChannel:
    """A handle of the progress actor whose calls never raise; it may be sent to workers."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._last: dict[str, Any] = {}

    def put(self, values: Mapping[str, Any]) -> None:
        """Reports values, without waiting for the actor."""
        with contextlib.suppress(RayError):
            self._actor.put.remote(dict(values))

    def read(self) -> dict[str, Any]:
        """All values reported so far; those read before where the actor does not answer."""
        answer = self._call(self._actor.read)
        self._last.update(answer or {})
        return dict(self._last)

    def ask_to_stop(self) -> None:
        """Asks all workers to save and end."""
        self._call(self._actor.ask_to_stop)

    def should_stop(self) -> bool:
        """Whether workers should save and end; False where the actor does not answer."""
        return bool(self._call(self._actor.should_stop))

    @staticmethod
    def _call(method: Any) -> Any:
        try:
            return ray.get(method.remote(), timeout=CALL_SECONDS)
        except RayError:
            return None


def start_channel(name: str | None = None) -> ProgressChannel:
    """Starts a progress actor on the head node, where it lives as long as the cluster.

    Args:
        name: of the actor on the cluster; two of one name cannot run at the same time.
    """
    heads = [node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1}
    if heads:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(heads[0], soft=True)
    if name is not None:
        options["name"] = name
    make_actor: Any = ray.remote(**options)
    return ProgressChannel(make_actor(ProgressActor).remote())


class StopSignal:
    """A worker's cheap view of whether to stop; a thread polls the progress actor."""

    def __init__(self, channel: ProgressChannel) -> None:
        self._channel = channel
        self._event = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self) -> bool:
        """Whether to stop; costs nothing."""
        return self._event.is_set()

    def close(self) -> None:
        """Stops asking."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            if self._channel.should_stop():
                self._event.set()
                return


@contextlib.contextmanager
def stop_on_sigterm(channel: ProgressChannel) -> Generator[threading.Event, None, None]:
    """Within the block a SIGTERM asks the workers to save and end; a second one ends at once.

    Yields an event that is set once that happened.
    """
    stopped, ended = threading.Event(), threading.Event()
    previous = signal.getsignal(signal.SIGTERM)

    def ask() -> None:
        # Again and again: an actor that was restarted has forgotten the request.
        while not ended.is_set():
            channel.ask_to_stop()
            ended.wait(POLL_SECONDS)

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() and callable(previous):
            previous(number, frame)
        stopped.set()
        print("stopping: saving a checkpoint first", file=sys.stderr)
        # A signal handler must not call into Ray, which may be in the middle of a call.
        threading.Thread(target=ask, daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield stopped
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, previous)
