"""Liveness and readiness probes."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.service.service import Service

UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "The service is not ready."}}
"""For the OpenAPI document."""
PROBE_SECONDS = 0.5
"""Time for which a probe's result is reused: probes need no key and must stay cheap."""


class CachedProbe:
    """A check whose result is shared by all requests within a short time.

    Args:
        check: raises if something is wrong.
    """

    def __init__(self, check: Callable[[], Awaitable[None]]) -> None:
        self.check = check
        self.lock = asyncio.Lock()
        self.checked_at, self.ok = float("-inf"), False

    async def response(self) -> JSONResponse:
        """200 if the check passes, else 503; the error is only logged."""
        async with self.lock:
            if time.monotonic() - self.checked_at > PROBE_SECONDS:
                try:
                    await self.check()
                    self.ok = True
                except Exception as error:
                    logging.getLogger("ray.serve").warning("probe: %r", error, exc_info=True)
                    self.ok = False
                self.checked_at = time.monotonic()
        status = "ok" if self.ok else "unavailable"
        return JSONResponse({"status": status}, status_code=200 if self.ok else 503)


def router(service: Service) -> APIRouter:
    """The routes for a service."""
    routes = APIRouter(tags=["health"])
    alive, ready = CachedProbe(service.alive), CachedProbe(service.ready)

    @routes.get("/healthz", responses=UNAVAILABLE)
    async def healthz() -> JSONResponse:
        """200 while storage works, else 503."""
        return await alive.response()

    @routes.get("/readyz", responses=UNAVAILABLE)
    async def readyz() -> JSONResponse:
        """200 while storage, renderer and sampler work, else 503."""
        return await ready.response()

    return routes
