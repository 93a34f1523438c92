"""Server-sent events of a video: progress and finished frames."""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse
from jaxtyping import UInt8
from starlette.types import Receive, Scope, Send

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.paths import on_disk
from serve.api.middleware import Owner
from serve.service import previews
from serve.service.service import Service
from serve.service.store import VideoFolder, read_chunk
from serve.service.video_queue import VideoQueue

POLL_SECONDS = 0.25
KEEPALIVE_SECONDS = 15.0
"""Silence after which a comment is sent, so that a client that is gone is noticed."""


def event(name: str, data: str) -> str:
    """One event; the data is JSON and so of one line."""
    return f"event: {name}\ndata: {data}\n\n"


def new_frames(folder: VideoFolder, sent: set[int]) -> list[str]:
    """Events for frames that are finished and were not sent; `sent` grows by them."""
    events: list[str] = []
    for indices, path in folder.finished_chunks():
        if sent.issuperset(indices):
            continue
        try:
            frames = read_chunk(path)
        except FileNotFoundError:
            # The video was completed meanwhile, or deleted.
            continue
        for index, frame in zip(indices, frames, strict=True):
            if index not in sent:
                sent.add(index)
                events.append(frame_event(index, frame))
    return events


def frame_event(index: int, frame: UInt8[np.ndarray, "H W 3"]) -> str:
    """A frame as a JPEG."""
    image = base64.b64encode(previews.jpeg(frame)).decode()
    body = {"index": index, "image": f"data:image/jpeg;base64,{image}"}
    return event("frame", json.dumps(body))


async def last_frames(folder: VideoFolder, sent: set[int]) -> AsyncGenerator[str, None]:
    """Events for what was finished between the last look and the end, from the video itself."""
    frames = enumerate(video.frames_of(await asyncio.to_thread(on_disk, folder.result)))

    def following() -> str | None:
        unsent = (frame_event(index, frame) for index, frame in frames if index not in sent)
        return next(unsent, None)

    with contextlib.suppress(InputError, FileNotFoundError):  # deleted meanwhile
        while line := await asyncio.to_thread(following):
            yield line


async def follow(
    desk: VideoQueue, folder: VideoFolder, *, frames: bool
) -> AsyncGenerator[str, None]:
    """Events of a video until its end.

    `progress` carries the video object whenever it changed, `frame` a frame as a JPEG; the last
    event is `completed`, `failed` or `cancelled`. Who comes after the end is told that alone.
    """
    sent: set[int] = set()
    told, spoke = "", time.monotonic()

    while True:
        state = await desk.look(folder)
        if state is None:
            body: dict[str, Any] = {"id": folder.id, "object": "video", "status": "cancelled"}
            yield event("cancelled", json.dumps(body))
            return
        if frames and not state.finished:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                for line in await asyncio.to_thread(new_frames, folder, sent):
                    yield line
                    spoke = time.monotonic()
        text = state.model_dump_json()
        if state.finished:
            if frames and told and state.status == "completed":
                async for line in last_frames(folder, sent):
                    yield line
            yield event(state.status, text)
            return
        if text != told:
            told, spoke = text, time.monotonic()
            yield event("progress", text)
        elif time.monotonic() - spoke > KEEPALIVE_SECONDS:
            spoke = time.monotonic()
            yield ": waiting\n\n"
        await asyncio.sleep(POLL_SECONDS)


class EventStream(StreamingResponse):
    """A stream of events that holds a place from its first byte to its end, however it ends."""

    def __init__(
        self, events: AsyncGenerator[str, None], place: AbstractContextManager[None]
    ) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream, or refuses to where there is no place."""
        with self.place:
            await super().__call__(scope, receive, send)


def router(service: Service) -> APIRouter:
    """The route for a service."""
    routes = APIRouter(tags=["videos"])

    @routes.get("/v1/videos/{video_id}/events", response_class=StreamingResponse)
    async def events(
        video_id: str,
        owner: Owner,
        frames: Annotated[bool, Query(description="send finished frames as well")] = True,
    ) -> StreamingResponse:
        """Server-sent events until the video ends: `progress`, `frame`, then how it ended."""
        folder, _ = await service.videos.find(video_id, owner)
        place = service.streams.hold(owner)
        return EventStream(follow(service.videos, folder, frames=frames), place)

    return routes
