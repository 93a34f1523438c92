"""What driver and workers tell each other: facts one way, the wish to stop the other way.

Knows nothing of what the facts mean. The board is an actor that needs no CPU; nobody waits for it.
"""

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
class Board:
    """Facts that workers put up, and whether they should stop."""

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._stop = False

    def put(self, facts: Mapping[str, Any]) -> None:
        """Replaces the facts of these names."""
        self._facts.update(facts)

    def read(self) -> dict[str, Any]:
        """All facts."""
        return self._facts

    def ask_to_stop(self) -> None:
        """Tells all workers to save and end."""
        self._stop = True

    def should_stop(self) -> bool:
        """Whether workers should save and end."""
        return self._stop


class StopWatch:
    """A worker's cheap view of whether it should stop: asks the board now and then, in a thread."""

    def __init__(self, board: Any) -> None:
        self._board = board
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
            if ray.get(self._board.should_stop.remote()):
                self._event.set()
                return


@contextlib.contextmanager
def stop_on_sigterm(board: Any) -> Generator[threading.Event, None, None]:
    """Within the block a SIGTERM asks the workers to save and end; a second one ends at once.

    Yields an event that tells whether that happened.
    """
    told = threading.Event()
    previous = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if told.is_set() and callable(previous):
            previous(number, frame)
        told.set()
        print("stopping: saving a checkpoint first", file=sys.stderr)
        # A signal handler must not call into Ray, which may be in the middle of a call.
        threading.Thread(target=lambda: ray.get(board.ask_to_stop.remote()), daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, previous)
