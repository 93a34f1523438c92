"""Rate and concurrency limits per API key."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from serve.config import Limits
from serve.service.request_errors import busy

Clock = Callable[[], float]
MAX_NAMES = 100_000
"""Names tracked at most; the longest idle ones are dropped first."""


@dataclass
class LiveLimits:
    """The current limits, which may be replaced while the service runs."""

    limits: Limits


class RateLimiter:
    """Token bucket per name, with a capacity of one minute of requests.

    Args:
        per_minute: returns the current limit.
        what: noun for the requests in error messages.
        clock: monotonic time in seconds.
    """

    def __init__(
        self, per_minute: Callable[[], int], what: str, clock: Clock = time.monotonic
    ) -> None:
        self._per_minute, self._what, self._clock = per_minute, what, clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """Counts a request.

        Raises:
            RequestError: the bucket is empty; carries the time until the next token.
        """
        per_minute, now = self._per_minute(), self._clock()
        # Removed and reinserted, so that the dictionary is ordered by last use.
        tokens, last = self._buckets.pop(name, (float(per_minute), now))
        tokens = min(float(per_minute), tokens + (now - last) * per_minute / 60)
        refused = tokens < 1
        self._buckets[name] = (tokens if refused else tokens - 1, now)
        if len(self._buckets) > MAX_NAMES:
            del self._buckets[next(iter(self._buckets))]
        if refused:
            raise busy(
                f"rate limit of {per_minute} {self._what} per minute exceeded for this key",
                (1 - tokens) * 60 / per_minute,
            )


class ConcurrencyLimiter:
    """Limit on what each name holds open at a time.

    Args:
        limit: returns the current limit.
        what: noun for the held things in error messages.
    """

    def __init__(self, limit: Callable[[], int], what: str) -> None:
        self._limit, self._what = limit, what
        self.held: dict[str, int] = {}

    @contextmanager
    def hold(self, name: str) -> Generator[None, None, None]:
        """Holds one during the block.

        Raises:
            RequestError: the name already holds the maximum.
        """
        if self.held.get(name, 0) >= self._limit():
            raise busy(f"limit of {self._limit()} {self._what} reached", 5)
        self.held[name] = self.held.get(name, 0) + 1
        try:
            yield
        finally:
            self.held[name] -= 1
            if not self.held[name]:
                del self.held[name]
