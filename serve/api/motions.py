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
        """Keeps a motion; its id is made from the file's content, so twice gives the same one."""
        async with service.upload_slots:
            content = await file.read()
            facts = await service.inspect_motion(content, service.recipe)
            return await service.motions.add(owner, content, facts)

    @routes.get("/v1/motions")
    async def list_motions(owner: Owner) -> MotionList:
        """The stored motions, the newest first."""
        return MotionList(data=await asyncio.to_thread(service.motions.all, owner))

    @routes.get("/v1/motions/{motion_id}")
    async def retrieve(motion_id: str, owner: Owner) -> StoredMotion:
        """What is known of a motion."""
        return await asyncio.to_thread(service.motions.get, motion_id, owner)

    @routes.head("/v1/motions/{motion_id}/preview", include_in_schema=False)
    @routes.get("/v1/motions/{motion_id}/preview", response_class=FileResponse)
    async def preview(motion_id: str, owner: Owner) -> FileResponse:
        """The poses drawn over the video that they were read from, as an MP4.

        `default` in place of an id shows the motion of videos that name none.
        """
        if motion_id == "default":
            content, _ = await service.default_motion()
            path = await service.motions.preview_of(content)
        else:
            path = await service.motions.preview(motion_id, owner)
        file = await asyncio.to_thread(on_disk, path)
        return FileResponse(file, media_type="video/mp4", filename=f"{motion_id}.mp4")

    @routes.delete("/v1/motions/{motion_id}")
    async def delete(motion_id: str, owner: Owner) -> Deleted:
        """Forgets a motion; videos that were asked for with it are rendered all the same."""
        await service.motions.delete(motion_id, owner)
        return Deleted(id=motion_id, object="motion.deleted")

    return routes
