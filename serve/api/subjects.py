"""Routes of `/v1/subjects`."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import BaseModel

from serve.api.middleware import Owner
from serve.api.videos import Deleted
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
        name: Annotated[str, Form(max_length=100, description="display name")] = "",
    ) -> Subject:
        """Finetunes the model on a person in the background.

        Until it is finished, videos with this subject are rendered with the base model and have a
        warning. The same photos give the same subject.
        """
        files = [photo.file for photo in photos]
        return service.subjects.add(owner, name, await service.normalize_photos(files, "photos"))

    @routes.get("/v1/subjects")
    async def list_subjects(owner: Owner) -> SubjectList:
        """The subjects, the newest first."""
        return SubjectList(data=await asyncio.to_thread(service.subjects.all, owner))

    @routes.get("/v1/subjects/{subject_id}")
    async def retrieve(subject_id: str, owner: Owner) -> Subject:
        """The subject's status and progress."""
        return service.subjects.find(subject_id, owner).record().subject

    @routes.delete("/v1/subjects/{subject_id}")
    async def delete(subject_id: str, owner: Owner) -> Deleted:
        """Stops finetuning if it is not finished, and deletes photos and weights."""
        folder = service.subjects.find(subject_id, owner)
        if await service.videos.uses_subject(subject_id):
            raise RequestError(
                409, "in_use", "an unfinished video uses this subject; cancel it first", field="id"
            )
        await service.subjects.delete(folder)
        return Deleted(id=subject_id, object="subject.deleted")

    return routes
