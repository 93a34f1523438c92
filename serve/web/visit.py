"""What the page asks of the interface for a visitor, with the visitor's own key and address.

Whatever the interface refuses comes back as the sentence that it gives. Knows nothing of Gradio.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp

from serve.service.request_errors import RequestError
from serve.web.inside import Inside

KEY = "dreampose_key"
"""The cookie in which a browser keeps a visitor's key for as long as it runs."""
FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""What a proxy says of where a request came from."""
AGAIN_SECONDS = 1.0


class Visit:
    """The interface as one visitor sees it; to be used as a context.

    Args:
        api: the application that answers.
        request: with which the visitor came.
    """

    def __init__(self, api: ASGIApp, request: HTTPConnection) -> None:
        headers = {
            name: request.headers[name] for name in ("host", *FORWARDED) if name in request.headers
        }
        if key := request.cookies.get(KEY):
            headers["authorization"] = f"Bearer {key}"
        client = request.client
        self.client = httpx.AsyncClient(
            transport=Inside(api, (client.host, client.port) if client else None),
            base_url="http://service",
            headers=headers,
            timeout=None,
        )

    async def __aenter__(self) -> Self:
        """Begins the visit."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends all that is still under way."""
        await self.client.aclose()

    async def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        """An answer of the interface.

        Raises:
            RequestError: it is no.
        """
        answer = await self.client.request(method, path, **request)
        check(answer)
        return answer

    async def follow(self, video_id: str) -> AsyncGenerator[tuple[str, Mapping[str, Any]], None]:
        """Events of a video until its end, the last of which says how it ended.

        Raises:
            RequestError: there is no such video, or too many are followed.
        """
        while True:
            async with self.client.stream("GET", f"/v1/videos/{video_id}/events") as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                check(answer)
                name = ""
                async for line in answer.aiter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, json.loads(value)
                        if name not in ("progress", "frame"):
                            return
            # It broke off before the end, since the service goes or comes back.
            await asyncio.sleep(AGAIN_SECONDS)


def check(answer: httpx.Response) -> None:
    """Whether an answer is what was asked for.

    Raises:
        RequestError: it is no.
    """
    if answer.status_code < 400:
        return
    try:
        error = answer.json()["error"]
        code, message = error["code"], error["message"]
    except (ValueError, KeyError, TypeError):
        code, message = "internal_error", f"the service answered {answer.status_code}"
    raise RequestError(answer.status_code, code, message)
