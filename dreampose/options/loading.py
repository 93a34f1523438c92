"""Model loading without library output."""

from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dreampose import checkpoints
from dreampose.io.folder_cache import local_folder
from dreampose.pipeline import DreamPosePipeline


def load(folder: str | Path, dtype: str = "float32") -> DreamPosePipeline:
    """Loads a model without the progress bars and messages of libraries.

    Args:
        folder: model folder, or the URI of one on any pyarrow filesystem.
        dtype: name of the torch dtype of the weights in memory.

    Raises:
        InputError: the folder is not a model folder.
    """
    silence_libraries()
    return checkpoints.load(local_folder(folder), getattr(torch, dtype))


def silence_libraries() -> None:
    """Disables progress bars and messages of diffusers and transformers."""
    diffusers_logging.disable_progress_bar()
    # diffusers warns about a value that its own AutoencoderTiny writes into the configuration.
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
