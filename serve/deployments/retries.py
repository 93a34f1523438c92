"""Trying again what a dead, full or broken replica lost. Knows nothing of videos."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, ReplicaUnavailableError

from dreampose.errors import InputError
from serve.service.backend import StoppedError
from serve.service.metrics import Measures, NoMeasures

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

MAX_TRIES_UNKNOWN = 3
"""Of calls that fail by anything else: a broken GPU, storage that stumbles, or the call itself."""

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
    """Awaits `call()`, again with back-off when the replica died or was full, or fails itself.

    The delay doubles from `first_delay` seconds up to 8 s, with up to a quarter of jitter so that
    many waiting callers do not come back at the same instant. Whoever is cancelled while waiting
    cancels the call as well, which Serve does not do by itself.

    Raises:
        InputError: the call's own, at once.
        StoppedError: likewise.
        Exception: the last loss after `max_tries`, the last of any other faults after three.
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
        except (InputError, StoppedError):
            raise
        except Exception as error:
            (measures or NoMeasures()).count("dreampose_retries", fault=type(error).__name__)
            most = max_tries if isinstance(error, LOST) else min(max_tries, MAX_TRIES_UNKNOWN)
            if attempt >= most:
                raise
            delay = min(8.0, first_delay * 2 ** (attempt - 1)) * random.uniform(1.0, 1.25)
            logger.warning(
                "%s lost (%s), try %d of %d in %.1f s",
                what, type(error).__name__, attempt + 1, most, delay,
            )  # fmt: skip
            await asyncio.sleep(delay)
    raise AssertionError("unreachable: the last try returns or raises")
