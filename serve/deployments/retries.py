"""Retries of calls to dead, full or failing replicas."""

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
from serve.service.metrics import Metrics, NullMetrics

REPLICA_ERRORS = (
    RayActorError,
    WorkerCrashedError,
    ObjectLostError,
    BackPressureError,
    ReplicaUnavailableError,
    # The connection to a sampler; exceptions of the sampler itself keep their type.
    grpc.RpcError,
)
"""Errors of the replica rather than the call: another replica may succeed."""

MAX_TRIES_UNKNOWN = 3
"""Attempts after any other error: a broken GPU, storage errors, or the call itself."""

Result = TypeVar("Result")

logger = logging.getLogger("ray.serve")


async def call_with_retries(
    call: Callable[[], Awaitable[Result]],
    *,
    what: str,
    max_tries: int,
    first_delay: float,
    metrics: Metrics | None = None,
) -> Result:
    """Awaits `call()`, retrying with back-off when the replica dies, is full, or the call fails.

    The delay doubles from `first_delay` seconds up to 8 s, with up to 25% jitter. Cancellation is
    passed on to the call, which Serve does not do by itself.

    Raises:
        InputError: of the call, without a retry.
        StoppedError: likewise.
        Exception: the last replica error after `max_tries`, any other error after three.
    """
    for attempt in range(1, max_tries + 1):
        response = call()
        try:
            return await response
        except asyncio.CancelledError:
            # Handle responses have `cancel`; plain coroutines (in tests) are cancelled already.
            cancel: Callable[[], object] = getattr(response, "cancel", lambda: None)
            cancel()
            raise
        except (InputError, StoppedError):
            raise
        except Exception as error:
            (metrics or NullMetrics()).count("dreampose_retries", fault=type(error).__name__)
            most = (
                max_tries
                if isinstance(error, REPLICA_ERRORS)
                else min(max_tries, MAX_TRIES_UNKNOWN)
            )
            if attempt >= most:
                raise
            delay = min(8.0, first_delay * 2 ** (attempt - 1)) * random.uniform(1.0, 1.25)
            logger.warning(
                "%s failed (%s), attempt %d of %d in %.1f s",
                what, type(error).__name__, attempt + 1, most, delay,
            )  # fmt: skip
            await asyncio.sleep(delay)
    raise AssertionError("unreachable: the last try returns or raises")
