"""Actor that carries progress to the driver and stop requests to workers."""

import contextlib
import signal
import sys
import threading
from collections.abc import Generator, Mapping
from types import FrameType
from typing import Any

import ray

POLL_SECONDS = 1.0


@ray.remote(num_cpus=0)
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


class StopSignal:
    """A worker's cheap view of whether to stop; a thread polls the progress actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
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
            if ray.get(self._actor.should_stop.remote()):
                self._event.set()
                return


@contextlib.contextmanager
def stop_on_sigterm(actor: Any) -> Generator[threading.Event, None, None]:
    """Within the block a SIGTERM asks the workers to save and end; a second one ends at once.

    Yields an event that is set once that happened.
    """
    stopped = threading.Event()
    previous = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if stopped.is_set() and callable(previous):
            previous(number, frame)
        stopped.set()
        print("stopping: saving a checkpoint first", file=sys.stderr)
        # A signal handler must not call into Ray, which may be in the middle of a call.
        threading.Thread(target=lambda: ray.get(actor.ask_to_stop.remote()), daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, previous)
