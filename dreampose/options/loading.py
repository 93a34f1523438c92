"""Loading a model for a command line: without the libraries' own progress bars."""

from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dreampose import checkpoints
from dreampose.pipeline import DreamPosePipeline


def load(folder: str | Path, dtype: str = "float32") -> DreamPosePipeline:
    """Reads a model folder in silence: it takes a second, and the command has a bar of its own.

    Args:
        folder: of the model.
        dtype: torch's name of the type of the tensors in memory.

    Raises:
        InputError: the folder holds no model.
    """
    quiet()
    return checkpoints.load(folder, getattr(torch, dtype))


def quiet() -> None:
    """Switches off the libraries' progress bars and their remarks."""
    diffusers_logging.disable_progress_bar()
    # It warns of a value that its own AutoencoderTiny writes into the configuration.
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
