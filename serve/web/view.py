"""How far a video is, as HTML: the newest frame, a bar, a strip of frames. Knows no Gradio."""

import asyncio
import base64
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from html import escape
from typing import Any

from serve.service import previews

PACE_SECONDS = 0.3
"""Frames that come closer together are shown together."""
STRIP_FRAMES = 24
"""At most so many small frames, evenly spread over the video."""
STRIP_HEIGHT = 96


class View:
    """What has been heard of a video.

    Attributes:
        video: the video object as it was last.
        ended: how it ended, empty until then.
    """

    def __init__(self, video: Mapping[str, Any]) -> None:
        self.video = video
        self.ended = ""
        self.newest = ""
        self.num_frames_seen = 0
        self.small: dict[int, str] = {}

    def take(self, name: str, body: Mapping[str, Any]) -> None:
        """Takes one event of the video."""
        if name == "frame":
            self.newest = body["image"]
            self.num_frames_seen += 1
            num_frames = self.video.get("num_frames") or 1
            if body["index"] % math.ceil(num_frames / STRIP_FRAMES) == 0:
                picture = base64.b64decode(body["image"].partition(",")[2])
                small = base64.b64encode(previews.smaller(picture, STRIP_HEIGHT)).decode()
                self.small[body["index"]] = f"data:image/jpeg;base64,{small}"
            return
        self.video = {**self.video, **body}
        if name != "progress":
            self.ended = name

    def picture(self) -> str:
        """The frame that was finished last."""
        if not self.newest:
            return '<div class="newest"><p>Frames appear here as they finish</p></div>'
        return f'<div class="newest"><img src="{self.newest}" alt="The newest frame"></div>'

    def progress(self) -> str:
        """A bar, a line, what the service warns of, and the strip."""
        percent = int(self.video.get("progress", 0))
        if self.video["status"] == "queued":
            line = "Waiting for its turn"
        else:
            line = f"{self.video['status'].replace('_', ' ').capitalize()} · {percent} %"
            if num_frames := self.video.get("num_frames"):
                line += f" · {num_frames} frames"
        warnings = "".join(f"<li>{escape(text)}</li>" for text in self.video.get("warnings", ()))
        strip = "".join(
            f'<img src="{self.small[index]}" alt="Frame {index}">' for index in sorted(self.small)
        )
        return (
            f'<div class="bar"><div style="width: {percent}%"></div></div>'
            f'<p class="line">{escape(line)}</p>'
            f'<ul class="warnings">{warnings}</ul><div class="strip">{strip}</div>'
        )


async def views(
    video: Mapping[str, Any], events: AsyncGenerator[tuple[str, Mapping[str, Any]], None]
) -> AsyncGenerator[View, None]:
    """What is to be shown of a video, each time that it has changed, and in the end."""
    view, changed = View(video), asyncio.Event()

    async def listen() -> None:
        try:
            async with aclosing(events):
                async for name, body in events:
                    await asyncio.to_thread(view.take, name, body)
                    changed.set()
        finally:
            changed.set()

    listening = asyncio.create_task(listen())
    try:
        while not listening.done():
            await changed.wait()
            changed.clear()
            yield view
            await asyncio.wait([listening], timeout=PACE_SECONDS)
        await listening
        yield view
    finally:
        listening.cancel()
        await asyncio.wait([listening])
