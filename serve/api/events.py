"""Server-sent events of a video: progress and finished frames."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from jaxtyping import UInt8

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.io.paths import on_disk
from serve.api.middleware import Owner
from serve.service import previews
from serve.service.service import Service
from serve.service.store import VideoFolder, read_chunk
from serve.service.video_queue import VideoQueue

POLL_SECONDS = 0.25


def new_frames(folder: VideoFolder, sent: set[int]) -> list[ServerSentEvent]:
    """Events of finished frames that were not sent yet; adds their indices to `sent`."""
    events: list[ServerSentEvent] = []
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


def frame_event(index: int, frame: UInt8[np.ndarray, "H W 3"]) -> ServerSentEvent:
    """Event with a frame as a JPEG."""
    image = base64.b64encode(previews.jpeg(frame)).decode()
    data = {"index": index, "image": f"data:image/jpeg;base64,{image}"}
    return ServerSentEvent(event="frame", data=data)


async def last_frames(folder: VideoFolder, sent: set[int]) -> AsyncGenerator[ServerSentEvent, None]:
    """Events of the frames finished since the last poll, from the encoded video."""
    frames = enumerate(video.frames_of(await asyncio.to_thread(on_disk, folder.result)))

    def following() -> ServerSentEvent | None:
        unsent = (frame_event(index, frame) for index, frame in frames if index not in sent)
        return next(unsent, None)

    with contextlib.suppress(InputError, FileNotFoundError):  # deleted meanwhile
        while event := await asyncio.to_thread(following):
            yield event


async def follow(
    videos: VideoQueue, folder: VideoFolder, *, frames: bool
) -> AsyncGenerator[ServerSentEvent, None]:
    """Events of a video until its end.

    `progress` has the video object whenever it changed, `frame` a frame as a JPEG; the last event
    is `completed`, `failed` or `cancelled`. For a finished video it is the only one.
    """
    sent: set[int] = set()
    previous = None
    while True:
        state = await videos.look(folder)
        if state is None:
            data: dict[str, Any] = {"id": folder.id, "object": "video", "status": "cancelled"}
            yield ServerSentEvent(event="cancelled", data=data)
            return
        if frames and not state.finished:
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                for event in await asyncio.to_thread(new_frames, folder, sent):
                    yield event
        if state.finished:
            if frames and previous and state.status == "completed":
                async for event in last_frames(folder, sent):
                    yield event
            yield ServerSentEvent(event=state.status, data=state)
            return
        if state != previous:
            previous = state
            yield ServerSentEvent(event="progress", data=state)
        await asyncio.sleep(POLL_SECONDS)


def router(service: Service) -> APIRouter:
    """The route for a service."""
    routes = APIRouter(tags=["videos"])

    async def found(video_id: str, owner: Owner) -> VideoFolder:
        folder, _ = await service.videos.find(video_id, owner)
        return folder

    async def stream(owner: Owner) -> AsyncGenerator[None, None]:
        with service.streams.hold(""), service.streams_per_key.hold(owner):
            yield

    @routes.get(
        "/v1/videos/{video_id}/events",
        response_class=EventSourceResponse,
        dependencies=[Depends(stream)],
    )
    async def events(
        folder: Annotated[VideoFolder, Depends(found)],
        frames: Annotated[bool, Query(description="send finished frames as well")] = True,
    ) -> AsyncIterable[ServerSentEvent]:
        """Server-sent events until the video ends: `progress`, `frame`, then its final status."""
        async for event in follow(service.videos, folder, frames=frames):
            yield event

    return routes
