"""Authentication, rate limits and body limits of requests.

All checks use the headers alone: the body of a request that is rejected is never read.
Without keys only loopback clients are served: the connection must come from a loopback address,
without a proxy, and name a loopback host, since DNS rebinding could point another name here.
"""

import asyncio
import contextlib
import ipaddress
import logging
import time
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dreampose.errors import InputError
from serve.api.errors import BodyLimitError, error_response
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.web import page

PUBLIC_PATHS = ("/healthz", "/readyz", "/openapi.json")
"""Served without a key: probes have none, and the document describes public code."""
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers by which a proxy names the client."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")


def _owner_of(request: Request) -> str:
    return request.state.owner


Owner = Annotated[str, Depends(_owner_of)]
"""Name of the request's key; empty without keys."""


def route_path(scope: Scope) -> str:
    """The path of a request without the prefix of the application."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


class HeadersMiddleware:
    """Adds security and cache headers to every response that has none of its own.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        static = scope["type"] == "http" and route_path(scope).startswith(page.PUBLIC_FOLDER)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "same-origin")
                headers.setdefault("Cache-Control", "no-cache" if static else "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class AuthMiddleware:
    """Admits requests by key or address, rate and capacity, and bounds their bodies.

    Args:
        app: the application.
        service: whose keys and limits apply.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request; a rejected one is answered without reading its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, headers = route_path(scope), Headers(scope=scope)
        with contextlib.ExitStack() as held:
            try:
                if path in PUBLIC_PATHS or page.is_public(path):
                    owner, receive = "", _without_body(receive)
                else:
                    owner = self._admit(scope, headers, path)
                    if _has_body(headers):
                        held.enter_context(self.service.uploads.hold(""))
                        held.enter_context(self.service.uploads_per_key.hold(owner))
                    receive = LimitedBody(receive, headers, self.service)
            except RequestError as error:
                response = error_response(error, self.service.metrics, close=_has_body(headers))
                await response(scope, receive, send)
                return
            scope.setdefault("state", {})["owner"] = owner
            await self.app(scope, receive, send)

    def _admit(self, scope: Scope, headers: Headers, path: str) -> str:
        service = self.service
        try:
            owner = self._owner(scope, headers)
        except InputError as error:
            logging.getLogger("ray.serve").exception("keys")
            raise RequestError(503, "no_keys", "the service cannot read its keys") from error
        service.requests.take(owner)
        if scope["method"] == "POST":
            service.posts.take(owner)
            # A repetition must get the first response even if the queue is full by now.
            if path.rstrip("/") == "/v1/videos" and "idempotency-key" not in headers:
                service.videos.check_capacity(owner)
            content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            if content_type not in FORM_TYPES:
                raise RequestError(
                    415,
                    "unsupported_media_type",
                    f"Content-Type must be {FORM_TYPES[0]}, got {content_type[:80]!r}",
                )
        return owner

    def _owner(self, scope: Scope, headers: Headers) -> str:
        if self.service.keys.in_use:
            scheme, _, key = headers.get("authorization", "").partition(" ")
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
                "without API keys only this machine is served; the operator can set keys, or "
                "open=true behind other access control",
            )
        if scope["method"] not in SAFE_METHODS and is_cross_site(headers):
            raise RequestError(
                403, "cross_site", "requests from pages of other sites are rejected without a key"
            )
        return ""


def is_local(scope: Scope, headers: Headers) -> bool:
    """Whether a request comes from this machine and names it as its host."""
    client = scope.get("client")
    if client is None or not _is_loopback(client[0]):
        return False
    if any(name in headers for name in FORWARDED):
        return False
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or _is_loopback(name)


def is_cross_site(headers: Headers) -> bool:
    """Whether a browser sent the request for a page of another site.

    Programs send neither `Sec-Fetch-Site` nor `Origin`; browsers send at least one of them with
    every unsafe method, and pages cannot change them.
    """
    if site := headers.get("sec-fetch-site"):
        return site not in ("same-origin", "none")
    if origin := headers.get("origin"):
        hosts = {headers.get("host", ""), headers.get("x-forwarded-host", "")} - {""}
        return urlsplit(origin).netloc not in hosts
    return False


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _without_body(receive: Receive) -> Receive:
    """Hides the body of a request to a public path, none of which needs one."""
    started = False

    async def next_message() -> Message:
        nonlocal started
        if not started:
            started = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            del message
        return message

    return next_message


class LimitedBody:
    """A request's body, limited in bytes and seconds.

    Raises:
        RequestError: the declared length exceeds the limit.
    """

    def __init__(self, receive: Receive, headers: Headers, service: Service) -> None:
        limits = service.live.limits
        self.receive, self.megabytes = receive, limits.max_upload_mb
        self.seconds, self.deadline = limits.upload_timeout_s, 0.0
        self.num_bytes, self.ended = 0, False
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.megabytes * 2**20:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next part of the body, then the client's disconnect, which has no time limit."""
        if self.ended:
            return await self.receive()
        self.deadline = self.deadline or time.monotonic() + self.seconds
        try:
            async with asyncio.timeout(self.deadline - time.monotonic()):
                message = await self.receive()
        except TimeoutError as error:
            raise BodyLimitError(
                RequestError(408, "too_slow", f"the body did not arrive within {self.seconds:g} s")
            ) from error
        self.ended = message["type"] != "http.request" or not message.get("more_body", False)
        self.num_bytes += len(message.get("body", b""))
        if self.num_bytes > self.megabytes * 2**20:
            raise BodyLimitError(self._too_large())
        return message

    def _too_large(self) -> RequestError:
        return RequestError(413, "too_large", f"the body exceeds {self.megabytes} MB")
