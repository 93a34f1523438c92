"""FastAPI application: routes, middleware, error handlers."""

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from dreampose.errors import InputError
from serve.api import events, health, models, motions, subjects, videos
from serve.api.errors import ERROR_RESPONSES, BodyLimitError, error_response
from serve.api.idempotency import IdempotencyMiddleware
from serve.api.middleware import AuthMiddleware, HeadersMiddleware
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.web import page

DESCRIPTION = """\
One photo of a person and a motion become a video of that person in that motion.

The routes follow the videos API of hosted video models: post a video, poll it by its id, fetch its
content. In addition there are events, stored motions and subjects. Every POST takes an
`Idempotency-Key` header: a repeated request with the same key returns the first response.
"""
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def build(service: Service, *, manage: bool = False) -> FastAPI:
    """The HTTP application of a service.

    Args:
        service: handles the requests.
        manage: open the service at startup and close it at shutdown; otherwise the caller does.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        if manage:
            await service.open()
        yield
        if manage:
            await service.close()

    api = FastAPI(
        title="DreamPose",
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own reference pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # For the document only: the middleware checks keys before a body is read.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )
    for routes in (videos, events, motions, subjects, models):
        api.include_router(routes.router(service), responses=ERROR_RESPONSES)
    api.include_router(health.router(service))
    page.mount(api)
    _add_error_handlers(api, service)
    # Serialized once: the document is served to clients without a key.
    document = json.dumps(api.openapi()).encode()

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(document, media_type="application/json")

    api.add_middleware(IdempotencyMiddleware, service=service)
    api.add_middleware(AuthMiddleware, service=service)
    api.add_middleware(HeadersMiddleware)
    return api


def _add_error_handlers(api: FastAPI, service: Service) -> None:
    @api.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return error_response(error, service.metrics)

    @api.exception_handler(InputError)
    async def input_error(_: Request, error: InputError) -> Response:
        """The message of an InputError starts with the name of the field."""
        field = str(error).split(" ", 1)[0].rstrip(":")
        return error_response(
            RequestError(400, "invalid_input", str(error), field=field), service.metrics
        )

    @api.exception_handler(RequestValidationError)
    async def form_error(_: Request, error: RequestValidationError) -> Response:
        """A missing or mistyped form field."""
        first = error.errors()[0]
        field = str(first["loc"][1] if len(first["loc"]) > 1 else first["loc"][-1])
        message = f"{field} is not valid: {first['msg']}"
        return error_response(
            RequestError(400, "invalid_form", message, field=field), service.metrics
        )

    @api.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        if isinstance(error, BodyLimitError):
            return error_response(error.error, service.metrics, close=True)
        code = CODES.get(error.status_code, "invalid_request")
        return error_response(
            RequestError(error.status_code, code, str(error.detail)), service.metrics
        )

    @api.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        logging.getLogger("ray.serve").error("%s failed", request.url.path, exc_info=error)
        return error_response(
            RequestError(500, "internal_error", "the service failed"), service.metrics
        )
