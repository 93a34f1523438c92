"""Routes of `/v1/motions`."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel

from dreampose.io.paths import on_disk
from serve.api.middleware import Owner
from serve.api.videos import Deleted
from serve.service.motion_library import StoredMotion
from serve.service.service import Service


class MotionList(BaseModel):
    """Every stored motion of a key."""

    object: Literal["list"] = "list"
    data: list[StoredMotion]
    has_more: Literal[False] = False


def router(service: Service) -> APIRouter:
    """The routes for a service."""
    routes = APIRouter(tags=["motions"])

    @routes.post("/v1/motions")
    async def create(
        owner: Owner,
        file: Annotated[UploadFile, File(description="a video, or a motion file (.npz)")],
    ) -> StoredMotion:
        """Stores a motion; its id follows from its content, so repetitions give the same one."""
        async with service.received_motion(file.file, service.recipe) as received:
            return await service.motions.add(owner, received)

    @routes.get("/v1/motions")
    async def list_motions(owner: Owner) -> MotionList:
        """The stored motions, the newest first."""
        return MotionList(data=await asyncio.to_thread(service.motions.all, owner))

    @routes.get("/v1/motions/{motion_id}")
    async def retrieve(motion_id: str, owner: Owner) -> StoredMotion:
        """The motion's status and properties."""
        return await asyncio.to_thread(service.motions.get, motion_id, owner)

    @routes.head("/v1/motions/{motion_id}/preview", include_in_schema=False)
    @routes.get("/v1/motions/{motion_id}/preview", response_class=FileResponse)
    async def preview(motion_id: str, owner: Owner) -> FileResponse:
        """MP4 of the poses drawn over the motion's video.

        `default` in place of an id shows the motion of requests without one.
        """
        if motion_id == "default":
            default = await service.default_motion(service.recipe)
            path = await service.motions.preview_of(default.path)
        else:
            path = await service.motions.preview(motion_id, owner)
        file = await asyncio.to_thread(on_disk, path)
        return FileResponse(file, media_type="video/mp4", filename=f"{motion_id}.mp4")

    @routes.delete("/v1/motions/{motion_id}")
    async def delete(motion_id: str, owner: Owner) -> Deleted:
        """Deletes a motion; videos that were queued with it are still rendered."""
        await service.motions.delete(motion_id, owner)
        return Deleted(id=motion_id, object="motion.deleted")

    return routes
