"""Routes of `/v1/videos`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from dreampose.config import PRESETS, Recipe
from dreampose.errors import InputError
from dreampose.io.paths import Place, on_disk
from serve.api.middleware import Owner
from serve.service import previews
from serve.service.records import RenderRequest, Video
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.service.uploads import MotionInfo

FIELDS = {
    "prompt", "input_reference", "input_reference[]", "motion", "model", "subject", "preset",
    "seed", "size", "seconds", "align",
}  # fmt: skip
PROMPT_NOTE = "prompt is ignored: the video follows from photo and motion alone"


class VideoList(BaseModel):
    """One page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """Response to a deletion."""

    id: str
    object: str
    deleted: Literal[True] = True


@asynccontextmanager
async def motion_of(
    service: Service, motion: UploadFile | str | None, owner: str, recipe: Recipe
) -> AsyncGenerator[tuple[Place, MotionInfo], None]:
    """A request's motion: a file, the id of a stored one, or the default.

    Raises:
        InputError: it is none of these, or its poses have another aspect than the frames.
    """
    if not motion:
        default = await service.default_motion(recipe)
        yield default.path, default.info
    elif isinstance(motion, str):
        try:
            stored = await asyncio.to_thread(service.motions.content, motion, owner, recipe)
        except RequestError as error:
            raise InputError(
                "motion must be a file or the id of a stored motion (URLs are not fetched), "
                f"got {motion[:120]!r}"
            ) from error
        yield stored
    else:
        async with service.received_motion(motion.file, recipe) as received:
            yield received.path, received.info


def clip_motion(info: MotionInfo, seconds: float | None, num_poses: int) -> tuple[int, list[str]]:
    """Number of frames of the first `seconds` of a motion, and warnings.

    Raises:
        InputError: they are fewer than the model's pose window.
    """
    if seconds is None:
        return info.num_frames, []
    if seconds > info.seconds:
        note = f"motion lasts {info.seconds:g} s, shorter than the requested {seconds:g} s"
        return info.num_frames, [note]
    num_frames = min(info.num_frames, max(1, round(seconds * info.fps)))
    if num_frames < num_poses:
        raise InputError(
            f"seconds must be at least {num_poses / info.fps:g}, {num_poses} frames, "
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
        model: Annotated[str, Form(description="the name of the model, or empty")] = "",
        subject: Annotated[str, Form(description="id of a subject")] = "",
        preset: Annotated[str, Form(description=f"one of {', '.join(PRESETS)}")] = "balanced",
        seed: Annotated[int, Form(ge=0, lt=2**63)] = 0,
        size: Annotated[str, Form(description="WIDTHxHEIGHT; by default the model's")] = "",
        seconds: Annotated[
            float | None,
            Form(
                gt=0,
                le=86400,
                allow_inf_nan=False,
                description="length to render from the start of the motion",
            ),
        ] = None,
        align: Annotated[bool, Form(description="fit the motion to the photo's body")] = True,
    ) -> Video:
        """Queues a video for rendering; poll it by its id."""
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
        references = [*(input_reference or []), *(more_references or [])]
        photos = await service.normalize_photos(
            [reference.file for reference in references], "input_reference"
        )
        async with motion_of(service, motion, owner, recipe) as (source, info):
            num_frames, warnings = clip_motion(info, seconds, recipe.num_poses)
            notes += [PROMPT_NOTE] * bool(prompt) + warnings
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
                motion=source,
                motion_suffix=info.suffix,
                size=f"{recipe.width}x{recipe.height}",
                seconds=f"{num_frames / info.fps:g}",
                fps=info.fps,
            )

    @routes.get("/v1/videos")
    async def list_videos(
        owner: Owner,
        after: Annotated[str, Query(description="last id of the previous page")] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """A page of videos by age, newest first by default."""
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
                f"the video is not completed, its status is {state.status}",
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
        """Cancels the video if it is not finished, and deletes it and its inputs."""
        folder, _ = await service.videos.find(video_id, owner)
        await service.videos.delete(folder)
        return Deleted(id=video_id, object="video.deleted")

    return routes
