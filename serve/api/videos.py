"""Routes of `/v1/videos`."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from dreampose.config import PRESETS, Recipe
from dreampose.errors import InputError
from dreampose.io.paths import on_disk
from serve.api.middleware import Owner
from serve.service import previews
from serve.service.records import RenderRequest, Video
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.service.uploads import MotionInfo, check_photo

FIELDS = {
    "prompt", "input_reference", "input_reference[]", "motion", "model", "subject", "preset",
    "seed", "size", "seconds", "align",
}  # fmt: skip
PROMPT_NOTE = "prompt is ignored: photo and motion alone decide"


class VideoList(BaseModel):
    """One page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """What is answered when something was deleted."""

    id: str
    object: str
    deleted: Literal[True] = True


async def read_photos(service: Service, files: Sequence[UploadFile], field: str) -> list[bytes]:
    """The photos of a request, each decoded once.

    Raises:
        InputError: there is none, there are too many, or one cannot be used.
    """
    limits = service.live.limits
    if not 1 <= len(files) <= limits.max_photos:
        raise InputError(
            f"{field} must hold 1 to {limits.max_photos} photos as files, got {len(files)}"
        )
    photos = [await file.read() for file in files]
    for number, photo in enumerate(photos, start=1):
        await asyncio.to_thread(check_photo, photo, limits, number=number)
        await asyncio.to_thread(service.moderator.check, photo, number)
    return photos


async def read_motion(
    service: Service, motion: UploadFile | str | None, owner: str, recipe: Recipe
) -> tuple[bytes, MotionInfo]:
    """A request's motion: a file, the id of a stored one, or the default.

    Raises:
        InputError: it is none of these, or its poses have another aspect than the recipe's frames.
    """
    if not motion:
        content, facts = await service.default_motion()
        is_known = recipe is service.recipe
        return content, facts if is_known else await service.inspect_motion(content, recipe)
    if isinstance(motion, str):
        try:
            return await asyncio.to_thread(service.motions.content, motion, owner, recipe)
        except RequestError as refusal:
            raise InputError(
                "motion must be a file or the id of a stored motion (URLs are not fetched), "
                f"got {motion[:120]!r}"
            ) from refusal
    content = await motion.read()
    return content, await service.inspect_motion(content, recipe)


def clip_motion(facts: MotionInfo, seconds: float | None, num_poses: int) -> tuple[int, list[str]]:
    """How many frames of a motion are rendered, and what to tell about that.

    Raises:
        InputError: fewer than the model's pose window.
    """
    if seconds is None:
        return facts.num_frames, []
    if seconds > facts.seconds:
        note = f"motion lasts {facts.seconds:g} s, so that not all of {seconds:g} s are rendered"
        return facts.num_frames, [note]
    num_frames = min(facts.num_frames, max(1, round(seconds * facts.fps)))
    if num_frames < num_poses:
        raise InputError(
            f"seconds must be at least {num_poses / facts.fps:g}, {num_poses} frames, "
            f"got {seconds:g}"
        )
    return num_frames, []


def router(service: Service) -> APIRouter:
    """The routes for a service."""
    routes = APIRouter(tags=["videos"])

    @routes.post("/v1/videos")
    async def create(
        request: Request,
        owner: Owner,
        input_reference: Annotated[
            list[UploadFile] | None, File(description="photos of one person")
        ] = None,
        more_references: Annotated[
            list[UploadFile] | None, File(alias="input_reference[]", description="the same")
        ] = None,
        motion: Annotated[
            UploadFile | str | None,
            File(description="a video, a motion file (.npz), or a stored motion's id"),
        ] = None,
        prompt: Annotated[str, Form(description="accepted and ignored")] = "",
        model: Annotated[str, Form(description="this service's model, or nothing")] = "",
        subject: Annotated[str, Form(description="id of a subject")] = "",
        preset: Annotated[str, Form(description=f"one of {', '.join(PRESETS)}")] = "balanced",
        seed: Annotated[int, Form(ge=0, lt=2**63)] = 0,
        size: Annotated[str, Form(description="WIDTHxHEIGHT; by default the model's")] = "",
        seconds: Annotated[
            float | None,
            Form(gt=0, le=86400, allow_inf_nan=False, description="of the motion's beginning"),
        ] = None,
        align: Annotated[bool, Form(description="fit the motion to the photo's body")] = True,
    ) -> Video:
        """Accepts a video to render; poll it under its id."""
        fields = set((await request.form()).keys())
        if any(field.startswith("input_reference[") for field in fields - FIELDS):
            raise InputError("input_reference must hold files; URLs and file ids are not fetched")
        settings = service.settings
        if model not in ("", settings.model_name):
            raise InputError(f"model must be {settings.model_name!r}, got {model[:120]!r}")
        if preset not in PRESETS:
            raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {preset[:120]!r}")
        recipe = service.recipe_for(size)
        chosen, notes = service.subjects.weights_for(subject, owner)
        async with service.upload_slots:
            photos = await read_photos(
                service, [*(input_reference or []), *(more_references or [])], "input_reference"
            )
            content, facts = await read_motion(service, motion, owner, recipe)
            num_frames, more_notes = clip_motion(facts, seconds, recipe.num_poses)
            notes += [PROMPT_NOTE] * bool(prompt) + more_notes
            notes += [f"{name[:120]} is not a field and is ignored" for name in fields - FIELDS]
            return await service.videos.accept(
                RenderRequest(
                    model=settings.model_name,
                    subject=chosen,
                    preset=preset,
                    seed=seed,
                    align=align,
                    size=None if recipe is service.recipe else (recipe.height, recipe.width),
                    seconds=seconds,
                    timeout_s=service.live.limits.render_timeout_s,
                    owner=owner,
                    notes=notes,
                ),
                photos=photos,
                motion=content,
                motion_suffix=facts.suffix,
                size=f"{recipe.width}x{recipe.height}",
                seconds=f"{num_frames / facts.fps:g}",
                fps=facts.fps,
            )

    @routes.get("/v1/videos")
    async def list_videos(
        owner: Owner,
        after: Annotated[str, Query(description="last id of the page before")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Videos by age, the newest first unless asked otherwise, page by page."""
        data, has_more = await service.videos.page(
            owner, limit=limit, after=after, newest_first=order == "desc"
        )
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=has_more)

    @routes.get("/v1/videos/{video_id}")
    async def retrieve(video_id: str, owner: Owner) -> Video:
        """The video's status and progress."""
        _, state = await service.videos.find(video_id, owner)
        return state

    @routes.head("/v1/videos/{video_id}/content", include_in_schema=False)
    @routes.get("/v1/videos/{video_id}/content", response_class=FileResponse)
    async def content(
        video_id: str,
        owner: Owner,
        variant: Literal["video", "thumbnail", "spritesheet"] = "video",
    ) -> FileResponse:
        """The MP4 of a completed video, its first frame (WebP) or a sheet of frames (JPEG)."""
        folder, state = await service.videos.find(video_id, owner)
        if state.status != "completed":
            raise RequestError(
                409,
                "not_completed",
                f"id must be of a completed video, got one {state.status}",
                field="id",
            )
        make, media_type, suffix = {
            "video": (lambda folder: folder.result, "video/mp4", "mp4"),
            "thumbnail": (previews.thumbnail, "image/webp", "webp"),
            "spritesheet": (previews.spritesheet, "image/jpeg", "jpg"),
        }[variant]
        path = await asyncio.to_thread(lambda: on_disk(make(folder)))
        return FileResponse(path, media_type=media_type, filename=f"{video_id}.{suffix}")

    @routes.delete("/v1/videos/{video_id}")
    async def delete(video_id: str, owner: Owner) -> Deleted:
        """Cancels the video where it is not finished, and removes it and all its inputs."""
        folder, _ = await service.videos.find(video_id, owner)
        await service.videos.delete(folder)
        return Deleted(id=video_id, object="video.deleted")

    return routes
