"""What happens on the page: each handler asks the interface for the visitor and shows the answer.

Handlers are generators of new values for the page's components. Importing this imports Gradio.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils
from starlette.types import ASGIApp

from dreampose.errors import InputError
from serve.service.request_errors import RequestError
from serve.web.view import View, views
from serve.web.visit import Visit

POLL_SECONDS = 0.5
TOLD_SECONDS = 30.0
"""How long the page shows what was refused, unless a visitor closes it."""
OWN_MOTION = "default"
"""In place of an id: the motion of videos that name none."""

Updates = AsyncGenerator[Mapping[Any, Any], None]
"""New values of some components at a time."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The components of the page that change or are read."""

    photos: gr.Gallery
    motion: gr.Dropdown
    motion_file: gr.File
    motion_state: gr.Markdown
    preset: gr.Dropdown
    seed: gr.Number
    render: gr.Button
    cancel: gr.Button
    preview: gr.Video
    newest: gr.Markdown
    result: gr.Video
    download: gr.DownloadButton
    progress: gr.Markdown
    video_id: gr.BrowserState
    """Kept by the browser, so that a page that is opened again finds its video."""


def telling(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """A handler that tells what was refused, or that the service failed, but never how."""

    @functools.wraps(handler)
    async def told(*args: Any) -> Updates:
        # Without any update Gradio would empty every component that there might have been one for.
        yield gr.skip()
        try:
            async with aclosing(handler(*args)) as updates:
                async for update in updates:
                    yield update
        except (InputError, RequestError) as refusal:
            raise gr.Error(str(refusal), duration=TOLD_SECONDS, print_exception=False) from refusal
        except Exception as error:
            logging.getLogger("ray.serve").exception("the page failed")
            raise gr.Error("the service failed", print_exception=False) from error

    return told


def motion_choices(motions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """MotionLibrary to choose from: what is shown of each, and its id."""
    stored = {motion["id"]: motion for motion in motions if motion["status"] == "completed"}
    return [("The service’s own", OWN_MOTION)] + [
        (f"{motion['num_frames']} frames, {float(motion['seconds']):.1f} s · {id_[7:13]}", id_)
        for id_, motion in stored.items()
    ]


class Handlers:
    """The handlers of one page.

    Args:
        api: the interface that they ask.
        folder: for the files that they show.
        parts: what they change.
    """

    def __init__(self, api: ASGIApp, folder: Path, parts: Parts) -> None:
        self.api, self.folder, self.parts = api, folder, parts

    def _visit(self, request: gr.Request) -> Visit:
        assert request.request is not None
        return Visit(self.api, request.request)

    @telling
    async def begin(self, request: gr.Request) -> Updates:
        """Lists the visitor's motions and shows the service's own."""
        async with self._visit(request) as visit:
            choices = motion_choices((await visit.ask("GET", "/v1/motions")).json()["data"])
            yield {self.parts.motion: gr.Dropdown(choices, value=OWN_MOTION)}
            yield await self._show_motion(visit, OWN_MOTION)

    @telling
    async def choose_motion(self, motion_id: str, request: gr.Request) -> Updates:
        """Shows another motion."""
        async with self._visit(request) as visit:
            yield await self._show_motion(visit, motion_id)

    async def _show_motion(self, visit: Visit, motion_id: str) -> Mapping[Any, Any]:
        try:
            answer = await visit.ask("GET", f"/v1/motions/{motion_id}/preview")
        except RequestError as refusal:
            # A service without a motion of its own is no fault as long as none was asked for.
            return {self.parts.preview: None, self.parts.motion_state: str(refusal)}
        preview = self._keep(answer.content, f"{motion_id}.mp4")
        return {self.parts.preview: preview, self.parts.motion_state: ""}

    def _keep(self, content: bytes, name: str) -> str:
        return processing_utils.save_bytes_to_cache(content, name, str(self.folder))

    @telling
    async def take_motion(self, path: str | None, request: gr.Request) -> Updates:
        """Stores an uploaded motion, waits until its poses are read, and shows them."""
        parts = self.parts
        if path is None:
            return
        try:
            async with self._visit(request) as visit:
                yield {parts.motion_state: "Looking at the file …", parts.render: busy(True)}
                with Path(path).open("rb") as file:
                    motion = (await visit.ask("POST", "/v1/motions", files={"file": file})).json()
                while motion["status"] in ("queued", "in_progress"):
                    yield {parts.motion_state: "Reading the poses …"}
                    await asyncio.sleep(POLL_SECONDS)
                    motion = (await visit.ask("GET", f"/v1/motions/{motion['id']}")).json()
                if motion["error"]:
                    raise InputError(motion["error"]["message"])
                choices = motion_choices((await visit.ask("GET", "/v1/motions")).json()["data"])
                yield {
                    parts.motion: gr.Dropdown(choices, value=motion["id"]),
                    **await self._show_motion(visit, motion["id"]),
                    parts.motion_state: f"{motion['num_frames']} frames, "
                    f"{motion['num_filled']} of them filled from their neighbours",
                    parts.render: busy(False),
                }
        except (InputError, RequestError):
            yield {parts.motion_state: "", parts.render: busy(False), parts.motion_file: None}
            raise

    @telling
    async def render(
        self,
        photos: Sequence[tuple[str, str | None]] | None,
        motion_id: str,
        preset: str,
        seed: int | None,
        request: gr.Request,
    ) -> Updates:
        """Asks for a video and shows it while it is made."""
        fields = {"preset": preset, "seed": "" if seed is None else str(seed)}
        if motion_id != OWN_MOTION:
            fields["motion"] = motion_id
        async with self._visit(request) as visit:
            if not photos:
                raise InputError("photos must be at least one, got none")
            with contextlib.ExitStack() as opened:
                files = [
                    ("input_reference", opened.enter_context(Path(path).open("rb")))
                    for path, _ in photos
                ]
                video = (await visit.ask("POST", "/v1/videos", data=fields, files=files)).json()
            yield {self.parts.video_id: video["id"]}
            async with aclosing(self._follow(visit, video)) as updates:
                async for update in updates:
                    yield update

    @telling
    async def resume(self, video_id: str, request: gr.Request) -> Updates:
        """Shows the video that this browser asked for last, where there still is one."""
        if not video_id:
            return
        async with self._visit(request) as visit:
            try:
                video = (await visit.ask("GET", f"/v1/videos/{video_id}")).json()
            except RequestError:
                yield {self.parts.video_id: ""}
                return
            if video["status"] == "failed":
                return
            async with aclosing(self._follow(visit, video)) as updates:
                async for update in updates:
                    yield update

    async def _follow(self, visit: Visit, video: Mapping[str, Any]) -> Updates:
        """Shows a video until its end, and what comes of it."""
        parts, view = self.parts, View(video)
        yield {
            parts.render: busy(True),
            parts.cancel: gr.Button(visible=True, interactive=True),
            parts.download: gr.DownloadButton(visible=False),
            parts.result: gr.Video(None, visible=False),
            parts.newest: gr.Markdown(view.picture(), visible=True),
            parts.progress: view.progress(),
        }
        rested: dict[Any, Any] = {
            parts.render: busy(False),
            parts.cancel: gr.Button(visible=False),
            parts.newest: gr.Markdown("", visible=False),
            parts.result: gr.Video(None, visible=True),
        }
        try:
            async with aclosing(views(video, visit.follow(video["id"]))) as seen:
                async for view in seen:
                    picture, progress = view.picture(), view.progress()
                    yield {parts.newest: picture, parts.progress: progress}
            if view.ended == "failed":
                raise InputError(view.video["error"]["message"])
            if view.ended == "completed":
                content = await visit.ask("GET", f"/v1/videos/{video['id']}/content")
                path = self._keep(content.content, f"{video['id']}.mp4")
                rested[parts.result] = gr.Video(path, visible=True)
                rested[parts.download] = gr.DownloadButton(value=path, visible=True)
            yield rested
        except (InputError, RequestError):
            yield rested
            raise

    @telling
    async def cancel(self, video_id: str, request: gr.Request) -> Updates:
        """Deletes the video; whoever follows it is told by the interface."""
        yield {self.parts.cancel: gr.Button(interactive=False)}
        async with self._visit(request) as visit:
            await visit.ask("DELETE", f"/v1/videos/{video_id}")


def busy(is_busy: bool) -> gr.Button:
    """The button that renders, as it is while something is under way or not."""
    return gr.Button(interactive=not is_busy)
