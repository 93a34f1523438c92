"""Replay of responses for repeated requests with an idempotency key."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api.errors import error_response
from serve.api.middleware import route_path
from serve.service.idempotency import StoredResponse
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.service.store import in_thread

MAX_KEY_LENGTH = 255


class IdempotencyMiddleware:
    """Returns the first successful response for a repeated POST of the same owner and key.

    A repetition that arrives while the first is in progress waits for it in the same replica, and
    gets 409 with `Retry-After` from another one.

    Args:
        app: the application.
        service: stores the responses.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.running: dict[str, asyncio.Lock] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        headers = Headers(scope=scope) if is_post else Headers()
        key = headers.get("idempotency-key", "")
        if not key:
            await self.app(scope, receive, send)
            return
        store = self.service.idempotency
        name = store.name(scope["state"]["owner"], route_path(scope), key[: MAX_KEY_LENGTH + 1])
        lock = self.running.setdefault(name, asyncio.Lock())
        try:
            async with lock:
                if len(key) > MAX_KEY_LENGTH:
                    raise RequestError(
                        400,
                        "invalid_idempotency_key",
                        f"Idempotency-Key must have at most {MAX_KEY_LENGTH} characters",
                    )
                stored = await in_thread(store.get, name)
                if stored is None or self._is_abandoned(stored):
                    await self._first(name, headers, scope, receive, send)
                else:
                    await self._repeated(stored, headers, scope, receive, send)
        except RequestError as error:
            await error_response(error, self.service.metrics, close=True)(scope, receive, send)
        finally:
            if not lock.locked():
                self.running.pop(name, None)

    def _is_abandoned(self, stored: StoredResponse) -> bool:
        """Whether the replica that was handling the first request must have died."""
        longest = self.service.live.limits.upload_timeout_s + 60
        return stored.status == 0 and time.time() - stored.started_at > longest

    async def _first(
        self, name: str, headers: Headers, scope: Scope, receive: Receive, send: Send
    ) -> None:
        store = self.service.idempotency
        stored = StoredResponse(
            started_at=time.time(), content_length=headers.get("content-length", "")
        )
        await in_thread(store.put, name, stored)

        async def record(message: Message) -> None:
            if message["type"] == "http.response.start":
                stored.status = message["status"]
            elif message["type"] == "http.response.body":
                stored.body += message.get("body", b"").decode()
                if not message.get("more_body") and 200 <= stored.status < 300:
                    # Before the client can see the response and lose it.
                    await in_thread(store.put, name, stored)
            await send(message)

        try:
            await self.app(scope, receive, record)
        finally:
            if not 200 <= stored.status < 300:
                await in_thread(store.drop, name)

    async def _repeated(
        self,
        stored: StoredResponse,
        headers: Headers,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        if stored.status == 0:
            raise RequestError(
                409,
                "in_progress",
                "a request with this Idempotency-Key is in progress",
                retry_after=1,
            )
        lengths = {stored.content_length, headers.get("content-length", "")} - {""}
        if len(lengths) > 1:
            raise RequestError(
                422,
                "idempotency_key_reused",
                "Idempotency-Key was used before for a request with another body",
            )
        # A client that is still sending might miss the response.
        while (message := await receive()).get("more_body"):
            del message
        response = Response(
            stored.body,
            stored.status,
            {"Idempotent-Replayed": "true"},
            media_type="application/json",
        )
        await response(scope, receive, send)
