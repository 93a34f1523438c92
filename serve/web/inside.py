"""The interface, asked from inside its own process: same gate, same routes, same answers.

A transport for httpx. Unlike httpx's own it gives an answer while it comes, as event streams need.
Knows nothing of what is asked.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

import httpx
from starlette.types import ASGIApp, Message, Scope


class Inside(httpx.AsyncBaseTransport):
    """Hands requests to an application of this process.

    Args:
        app: what answers.
        client: address and port that the requests are said to come from.
    """

    def __init__(self, app: ASGIApp, client: tuple[str, int] | None) -> None:
        self.app, self.client = app, client

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Begins a request; its answer's body comes as it is read."""
        answer = Answer(self.app, self._scope(request), request.stream)
        start = await answer.next()
        if start is None:
            await answer.aclose()
            raise httpx.RemoteProtocolError("no answer came", request=request)
        return httpx.Response(start["status"], headers=start["headers"], stream=answer)

    def _scope(self, request: httpx.Request) -> Scope:
        url = request.url
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.partition(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": self.client,
            "server": (url.host, url.port),
        }


class Answer(httpx.AsyncByteStream):
    """What an application sends for one request; closing it ends the application's work on it."""

    def __init__(self, app: ASGIApp, scope: Scope, body: object) -> None:
        assert isinstance(body, httpx.AsyncByteStream)
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self.closed = asyncio.Event()
        self.requests = self._requests(body)
        self.ended = False
        self.task = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, lambda: anext(self.requests), self.messages.put)
        finally:
            self.messages.put_nowait(None)

    async def _requests(self, body: httpx.AsyncByteStream) -> AsyncGenerator[Message, None]:
        """What the application receives: the request's body, and in the end that nobody listens."""
        async for part in body:
            yield {"type": "http.request", "body": part, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}
        await self.closed.wait()
        while True:
            yield {"type": "http.disconnect"}

    async def next(self) -> Message | None:
        """The next message, None where there will be none."""
        message = await self.messages.get()
        self.ended = message is None or (
            message["type"] == "http.response.body" and not message.get("more_body", False)
        )
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The parts of the body."""
        while not self.ended and (message := await self.next()):
            yield message.get("body", b"")

    async def aclose(self) -> None:
        """Lets the application go, as if its client had left."""
        self.closed.set()
        if not self.ended:
            self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            # What it failed with it has answered and logged itself.
            self.task.exception()
