"""Loading a model for a command line: without the libraries' own progress bars."""

from pathlib import Path

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from dreampose import checkpoints
from dreampose.pipeline import DreamPosePipeline


def load(folder: str | Path) -> DreamPosePipeline:
    """Reads a model folder in silence: it takes a second, and the command has a bar of its own.

    Raises:
        InputError: the folder holds no model.
    """
    quiet()
    return checkpoints.load(folder)


def quiet() -> None:
    """Switches off the libraries' progress bars and their remarks."""
    diffusers_logging.disable_progress_bar()
    # It warns of a value that its own AutoencoderTiny writes into the configuration.
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
