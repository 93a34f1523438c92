"""Liveness and readiness probes."""

import logging
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve.service.service import Service

UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "Something is in the way."}}
"""For the OpenAPI document."""


def router(service: Service) -> APIRouter:
    """The routes for a service."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", responses=UNAVAILABLE)
    async def healthz() -> JSONResponse:
        """200 while requests can be kept in storage, else 503."""
        return await _probe(service.alive())

    @routes.get("/readyz", responses=UNAVAILABLE)
    async def readyz() -> JSONResponse:
        """200 while the whole way to a sampler's model is open, else 503."""
        return await _probe(service.ready())

    return routes


async def _probe(way: Awaitable[None]) -> JSONResponse:
    try:
        await way
    except Exception as error:
        # What is wrong is for the log: whoever probes needs no key.
        logging.getLogger("ray.serve").warning("not well: %r", error, exc_info=True)
        return JSONResponse({"status": "unavailable"}, status_code=503)
    return JSONResponse({"status": "ok"})
