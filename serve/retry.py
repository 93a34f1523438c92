"""Trying again what a dead or full replica lost. Knows nothing of videos."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

from dreampose.errors import InputError

LOST = (
    RayActorError,
    WorkerCrashedError,
    ObjectLostError,
    BackPressureError,
    ReplicaUnavailableError,
)
"""Faults of the place where a call ran, not of the call: trying elsewhere may help."""

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


async def call_with_retries(
    call: Callable[[], Awaitable[Result]], *, what: str, max_tries: int, first_delay: float
) -> Result:
    """Awaits `call()`, again with back-off when the replica died or was full.

    The delay doubles from `first_delay` seconds up to 8 s, with up to a quarter of jitter so that
    many waiting callers do not come back at the same instant.

    Raises:
        BaseException: what the call itself raised, or the last loss after `max_tries`.
    """
    for attempt in range(1, max_tries + 1):
        try:
            return await call()
        except LOST as error:
            if attempt == max_tries:
                raise
            delay = min(8.0, first_delay * 2 ** (attempt - 1)) * random.uniform(1.0, 1.25)
            logger.warning(
                "%s lost (%s), try %d of %d in %.1f s",
                what, type(error).__name__, attempt + 1, max_tries, delay,
            )  # fmt: skip
            await asyncio.sleep(delay)
    raise AssertionError("unreachable: the last try returns or raises")


def reason(error: BaseException) -> str:
    """An error in one sentence, without the trace that Ray adds to what a replica raised."""
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text[:500]}"
