"""Route `/v1/models`."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from dreampose.config import PRESETS
from serve.api.middleware import Owner
from serve.service.service import Service


class PresetInfo(BaseModel):
    """A preset and its denoising steps."""

    name: str
    num_steps: int


class Model(BaseModel):
    """The model that the service renders with."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix seconds of the model's last change")
    owned_by: Literal["dreampose"] = "dreampose"
    size: str = Field(description="frame size as WIDTHxHEIGHT")
    presets: list[PresetInfo]


class ModelList(BaseModel):
    """All models, which is one."""

    object: Literal["list"] = "list"
    data: list[Model]


def router(service: Service) -> APIRouter:
    """The route for a service."""
    routes = APIRouter(tags=["models"])

    @routes.get("/v1/models")
    async def list_models(owner: Owner) -> ModelList:
        """The model, its frame size and presets."""
        del owner
        presets = [
            PresetInfo(name=name, num_steps=preset.num_steps) for name, preset in PRESETS.items()
        ]
        model = Model(
            id=service.settings.model_name,
            created=service.model_changed,
            size=service.size,
            presets=presets,
        )
        return ModelList(data=[model])

    return routes
