"""Pose-driven fashion video: one photo of a person and a motion become a video.

Names of the public interface are imported when first used: importing the package alone is quick
and loads no torch. diffusers looks a saved pipeline's parts up here by name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin as ModelMixin

    from dreampose.errors import InputError as InputError
    from dreampose.errors import SubjectMismatchWarning as SubjectMismatchWarning
    from dreampose.models.adapter import ImageAdapter as ImageAdapter
    from dreampose.pipeline import DreamPosePipeline as DreamPosePipeline
    from dreampose.poses import Motion as Motion
    from dreampose.recipes import recipe as recipe

__version__ = "0.1.0"

_EXPORTS = {
    "DreamPosePipeline": "dreampose.pipeline",
    "ImageAdapter": "dreampose.models.adapter",
    "InputError": "dreampose.errors",
    "ModelMixin": "diffusers",  # how diffusers finds out how to load ImageAdapter
    "Motion": "dreampose.poses",
    "SubjectMismatchWarning": "dreampose.errors",
    "recipe": "dreampose.recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
