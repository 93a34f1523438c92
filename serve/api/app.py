"""FastAPI application: routes, middleware, error handlers."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from dreampose.errors import InputError
from serve.api import events, health, motions, subjects, videos
from serve.api.middleware import ERROR_RESPONSES, AuthMiddleware, BodyLimitError, answer
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.web import page

DESCRIPTION = """\
One photo of a person and a motion become a video of that person in that motion.

The interface follows the videos API that clients of hosted video models speak: post a video, poll
it under its id, fetch its content. Beyond it there are events, stored motions and subjects.
"""
CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def build(service: Service, *, manage: bool = False, with_page: bool = True) -> FastAPI:
    """The interface of a service.

    Args:
        service: what answers.
        manage: open the service when the application starts and close it when it ends; without it
            whoever made the service does.
        with_page: the page for people as well, for which Gradio is imported where it is installed.
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
        # For the document alone: the gate looks at keys before a body is read.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
    )
    for routes in (videos, events, motions, subjects):
        api.include_router(routes.router(service), responses=ERROR_RESPONSES)
    api.include_router(health.router(service))

    @api.exception_handler(RequestError)
    async def refuse(_: Request, error: RequestError) -> Response:
        return answer(error, service.metrics)

    @api.exception_handler(InputError)
    async def refuse_input(_: Request, error: InputError) -> Response:
        """Bad input is the client's fault, in one sentence that begins with the field's name."""
        field = str(error).split(" ", 1)[0].rstrip(":")
        return answer(RequestError(400, "invalid_input", str(error), field=field), service.metrics)

    @api.exception_handler(RequestValidationError)
    async def refuse_form(_: Request, error: RequestValidationError) -> Response:
        """A missing or mistyped form field."""
        first = error.errors()[0]
        field = str(first["loc"][1] if len(first["loc"]) > 1 else first["loc"][-1])
        message = f"{field} must be given rightly: {first['msg']}"
        return answer(RequestError(400, "invalid_form", message, field=field), service.metrics)

    @api.exception_handler(HTTPException)
    async def refuse_request(_: Request, error: HTTPException) -> Response:
        if isinstance(error, BodyLimitError):
            return answer(error.refusal, service.metrics)
        code = CODES.get(error.status_code, "invalid_request")
        return answer(RequestError(error.status_code, code, str(error.detail)), service.metrics)

    @api.exception_handler(Exception)
    async def internal_error(request: Request, error: Exception) -> Response:
        logging.getLogger("ray.serve").error("%s failed", request.url.path, exc_info=error)
        return answer(RequestError(500, "internal_error", "the service failed"), service.metrics)

    if with_page:
        page.mount(api, service)
    api.add_middleware(AuthMiddleware, service=service)
    return api
