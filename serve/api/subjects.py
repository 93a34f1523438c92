"""Routes of `/v1/subjects`."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel

from serve.api.middleware import Owner
from serve.api.videos import Deleted, read_photos
from serve.service.request_errors import RequestError
from serve.service.service import Service
from serve.service.subject_library import Subject


class SubjectList(BaseModel):
    """Every subject of a key."""

    object: Literal["list"] = "list"
    data: list[Subject]
    has_more: Literal[False] = False


def router(service: Service) -> APIRouter:
    """The routes for a service."""
    routes = APIRouter(tags=["subjects"])

    @routes.post("/v1/subjects")
    async def create(
        owner: Owner,
        photos: Annotated[list[UploadFile], File(description="photos of one person")],
        name: Annotated[str, Form(max_length=100, description="for people to read")] = "",
    ) -> Subject:
        """Finetunes on a person in the background.

        A video that names the subject while that lasts is rendered with the base model and says so
        among its warnings. The same photos again give the same subject.
        """
        async with service.upload_slots:
            return service.subjects.add(owner, name, await read_photos(service, photos, "photos"))

    @routes.get("/v1/subjects")
    async def list_subjects(owner: Owner) -> SubjectList:
        """The subjects, the newest first."""
        return SubjectList(data=await asyncio.to_thread(service.subjects.all, owner))

    @routes.get("/v1/subjects/{subject_id}")
    async def retrieve(subject_id: str, owner: Owner) -> Subject:
        """The subject's status and progress."""
        return service.subjects.find(subject_id, owner).job().subject

    @routes.delete("/v1/subjects/{subject_id}")
    async def delete(subject_id: str, owner: Owner) -> Deleted:
        """Stops finetuning where it is not finished, and removes photos and weights."""
        folder = service.subjects.find(subject_id, owner)
        if await service.videos.uses_subject(subject_id):
            raise RequestError(
                409, "in_use", "id must be of a subject that no unfinished video uses", field="id"
            )
        await service.subjects.delete(folder)
        return Deleted(id=subject_id, object="subject.deleted")

    return routes
