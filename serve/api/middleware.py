"""Authentication, rate limits and body limits of requests.

Without keys only this machine is answered: the connection must come from a loopback address, not
be forwarded by a proxy, and name a loopback host, since a page in a browser can have other names
lead here.
"""

import asyncio
import ipaddress
import logging
import math
import time
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreampose.errors import InputError
from serve.service.metrics import Metrics
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.web import page
from serve.web.visit import FORWARDED, KEY


class ErrorDetail(BaseModel):
    """What was wrong with a request."""

    message: str = Field(description="one sentence, for people")
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str = Field(description="for programs")
    param: str | None = Field(description="the field at fault, if one is")


class ErrorBody(BaseModel):
    """The body of every answer that refuses a request."""

    error: ErrorDetail


ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused, and why."},
    429: {
        "model": ErrorBody,
        "description": "Too much at once: a full queue, a rate, or what one key may have.",
        "headers": {
            "Retry-After": {
                "description": "seconds after which another try may succeed",
                "schema": {"type": "integer", "minimum": 1},
            }
        },
    },
    "5XX": {"model": ErrorBody, "description": "The service failed."},
}
"""For the OpenAPI document."""
PUBLIC_PATHS = ("/healthz", "/readyz")
"""Answered to anybody, since whoever probes them has no key to show."""


class BodyLimitError(HTTPException):
    """A body that is refused while it is read; FastAPI lets no other exception out of there."""

    def __init__(self, refusal: RequestError) -> None:
        super().__init__(refusal.status, refusal.message)
        self.refusal = refusal


def answer(refusal: RequestError, metrics: Metrics) -> JSONResponse:
    """The error object that clients of the videos API expect."""
    metrics.count("dreampose_refused", code=refusal.code)
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    problem = ErrorDetail(
        message=refusal.message,
        type="rate_limit_error" if refusal.status == 429 else kind,
        code=refusal.code,
        param=refusal.field,
    )
    headers: dict[str, str] = {}
    if refusal.retry_after:
        headers["Retry-After"] = str(math.ceil(refusal.retry_after))
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = ErrorBody(error=problem).model_dump()
    return JSONResponse(body, status_code=refusal.status, headers=headers)


def _owner_of(request: Request) -> str:
    return request.state.owner


Owner = Annotated[str, Depends(_owner_of)]
"""Name of the key that a request showed; empty where no keys are in use."""


class AuthMiddleware:
    """An ASGI application around another.

    Args:
        app: what answers the requests that pass.
        service: whose keys and limits hold.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request itself, without reading its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = page.route(scope)
        try:
            is_free = path in PUBLIC_PATHS or page.is_free(path)
            owner = "" if is_free else self._admit(scope, path)
            body = Body(receive, scope, self.service)
        except RequestError as refusal:
            refused = answer(refusal, self.service.metrics)
            if page.is_part(path):
                refused = page.refused(refusal, path)
            await refused(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, body, send)

    def _admit(self, scope: Scope, path: str) -> str:
        service = self.service
        try:
            owner = self._owner(scope, path)
        except InputError as error:
            logging.getLogger("ray.serve").exception("keys")
            raise RequestError(503, "no_keys", "keys cannot be read by the service") from error
        service.requests.take(owner)
        if scope["method"] == "POST" and (not page.is_part(path) or path == page.UPLOAD):
            service.posts.take(owner)
            if path.rstrip("/") == "/v1/videos":
                service.videos.check_capacity(owner)
        return owner

    def _owner(self, scope: Scope, path: str) -> str:
        headers = Headers(scope=scope)
        if self.service.keys.in_use:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if page.is_part(path):
                # A cookie opens the page alone, since other pages can have a browser send it.
                scheme, key = "bearer", HTTPConnection(scope).cookies.get(KEY, "")
            owner = self.service.keys.owner(key.strip()) if scheme.lower() == "bearer" else None
            if owner is None:
                raise RequestError(
                    401, "invalid_api_key", "Authorization must be 'Bearer KEY' with a valid key"
                )
            return owner
        if not self.service.settings.open and not is_local(scope, headers):
            raise RequestError(
                403,
                "not_open",
                "without API keys only this machine is answered: whoever runs the service can set "
                "keys, or open=true behind something else that guards it",
            )
        return ""


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine and was meant for it."""
    client = scope.get("client")
    if client is None or not _is_loopback(client[0]):
        return False
    if any(name in headers for name in FORWARDED):
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class Body:
    """A request's body, cut off where it is too long or comes too slowly.

    Raises:
        RequestError: the length that it announces is too long already.
    """

    def __init__(self, receive: Receive, scope: Scope, service: Service) -> None:
        limits = service.live.limits
        self.receive, self.megabytes = receive, limits.max_upload_mb
        self.seconds, self.deadline = limits.upload_timeout_s, 0.0
        self.num_bytes, self.ended = 0, False
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.megabytes * 2**20:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next part of the body, then whether the client is gone, however long that takes."""
        if self.ended:
            return await self.receive()
        self.deadline = self.deadline or time.monotonic() + self.seconds
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                message = await self.receive()
        except TimeoutError as error:
            refusal = RequestError(
                408, "too_slow", f"the body must arrive within {self.seconds:g} s, got less of it"
            )
            raise BodyLimitError(refusal) from error
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self.megabytes * 2**20:
            raise BodyLimitError(self._too_large())
        return message

    def _too_large(self) -> RequestError:
        message = f"the body must hold at most {self.megabytes} MB, got more"
        return RequestError(413, "too_large", message)
