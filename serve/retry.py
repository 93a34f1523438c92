"""Trying again what a dead or full replica lost. Knows nothing of videos."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

from serve.measures import Measures, NoMeasures

LOST = (
    RayActorError,
    WorkerCrashedError,
    ObjectLostError,
    BackPressureError,
    ReplicaUnavailableError,
    # What a sampler itself raises comes back as what it is; this is the connection to it.
    grpc.RpcError,
)
"""Faults of the place where a call ran, not of the call: trying elsewhere may help."""

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


async def call_with_retries(
    call: Callable[[], Awaitable[Result]],
    *,
    what: str,
    max_tries: int,
    first_delay: float,
    measures: Measures | None = None,
) -> Result:
    """Awaits `call()`, again with back-off when the replica died or was full.

    The delay doubles from `first_delay` seconds up to 8 s, with up to a quarter of jitter so that
    many waiting callers do not come back at the same instant. Whoever is cancelled while waiting
    cancels the call as well, which Serve does not do by itself.

    Raises:
        BaseException: what the call itself raised, or the last loss after `max_tries`.
    """
    for attempt in range(1, max_tries + 1):
        response = call()
        try:
            return await response
        except asyncio.CancelledError:
            # A handle's response can be cancelled; a coroutine, a test's stand-in, already is.
            cancel: Callable[[], object] = getattr(response, "cancel", lambda: None)
            cancel()
            raise
        except LOST as error:
            (measures or NoMeasures()).count("dreampose_retries", fault=type(error).__name__)
            if attempt == max_tries:
                raise
            delay = min(8.0, first_delay * 2 ** (attempt - 1)) * random.uniform(1.0, 1.25)
            logger.warning(
                "%s lost (%s), try %d of %d in %.1f s",
                what, type(error).__name__, attempt + 1, max_tries, delay,
            )  # fmt: skip
            await asyncio.sleep(delay)
    raise AssertionError("unreachable: the last try returns or raises")
