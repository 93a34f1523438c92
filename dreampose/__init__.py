"""Pose-driven fashion video from a photo and a motion.

Public names are imported lazily: importing the package is fast and does not load torch. diffusers
looks up the components of a saved pipeline here by name.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import ModelMixin as ModelMixin

    from dreampose.errors import InputError as InputError
    from dreampose.errors import SubjectMismatchWarning as SubjectMismatchWarning
    from dreampose.models.adapter import ImageAdapter as ImageAdapter
    from dreampose.models.refiner import Refiner as Refiner
    from dreampose.pipeline import DreamPosePipeline as DreamPosePipeline
    from dreampose.poses import Motion as Motion
    from dreampose.recipes import recipe as recipe

__version__ = "0.1.0"

# diffusers imports bitsandbytes, which warns on some CPUs about a missing 4-bit kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_EXPORTS = {
    "DreamPosePipeline": "dreampose.pipeline",
    "ImageAdapter": "dreampose.models.adapter",
    "InputError": "dreampose.errors",
    "ModelMixin": "diffusers",  # diffusers looks up the base class of ImageAdapter here
    "Motion": "dreampose.poses",
    "Refiner": "dreampose.models.refiner",
    "SubjectMismatchWarning": "dreampose.errors",
    "recipe": "dreampose.recipes",
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
