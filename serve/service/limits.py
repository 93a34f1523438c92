"""How much of the service one key may use at a time. Knows nothing of HTTP, Ray or videos."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.config import Limits
from serve.service.request_errors import busy

Clock = Callable[[], float]
MAX_NAMES = 100_000
"""Keys that are remembered at most; those that were idle the longest are forgotten first."""


@dataclass
class Live:
    """The limits as they are now; a running service may be told others."""

    limits: Limits


class Rate:
    """A bucket for each name that holds a minute's worth of requests and fills evenly.

    Args:
        per_minute: gives the limit as it is now.
        what: of the requests, for the message.
        clock: seconds of a clock that never goes back.
    """

    def __init__(
        self, per_minute: Callable[[], int], what: str, clock: Clock = time.monotonic
    ) -> None:
        self._per_minute, self._what, self._clock = per_minute, what, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Counts a request.

        Raises:
            RequestError: the name has used up its minute; says when the next request may come.
        """
        per_minute, now = self._per_minute(), self._clock()
        # Taken out and put in again: the order of the dictionary is that of the last use.
        tokens, last = self._buckets.pop(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - last) * per_minute / 60)
        refused = tokens < 1
        self._buckets[name] = (tokens if refused else tokens - 1, now)
        if len(self._buckets) > MAX_NAMES:
            del self._buckets[next(iter(self._buckets))]
        if refused:
            raise busy(
                f"a key may send at most {per_minute} {self._what} per minute, got more",
                (1 - tokens) * 60 / per_minute,
            )


class Concurrency:
    """How many things each name holds open at a time.

    Args:
        limit: gives the limit as it is now.
        what: of the things, for the message.
    """

    def __init__(self, limit: Callable[[], int], what: str) -> None:
        self._limit, self._what = limit, what
        self.held: dict[str, int] = {}

    @contextmanager
    def hold(self, name: str) -> Generator[None, None, None]:
        """Holds one for the length of the block.

        Raises:
            RequestError: the name holds as many as it may.
        """
        if self.held.get(name, 0) >= self._limit():
            raise busy(f"a key may hold at most {self._limit()} {self._what}, got as many", 5)
        self.held[name] = self.held.get(name, 0) + 1
        try:
            yield
        finally:
            self.held[name] -= 1
            if not self.held[name]:
                del self.held[name]
