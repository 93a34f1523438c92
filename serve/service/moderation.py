"""Classifier of unsafe photos (Yahoo open_nsfw, ONNX).

The file is not part of this package; the operator configures its path. The classifier scores whole
images and makes errors in both directions: it is a first filter only.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps

from dreampose.errors import InputError

SIDE, CROP = 256, 224
MEAN = (104.0, 117.0, 123.0)
"""Mean of the training images, in BGR order."""


class PhotoModerator:
    """Rejects unsafe photos.

    Args:
        path: of the classifier; empty disables the check.
        threshold: score in [0, 1] from which a photo is rejected.

    Raises:
        InputError: the file is missing or no ONNX file, or onnxruntime is not installed.
    """

    def __init__(self, path: str, threshold: float) -> None:
        self.threshold = threshold
        self._session: Any = None
        if not path:
            return
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                "nsfw_model needs onnxruntime; install dreampose[screening] or leave it empty"
            ) from error
        try:
            self._session = onnxruntime.InferenceSession(
                Path(path).read_bytes(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has many, and a missing file is one of them
            raise InputError(
                f"nsfw_model must be an ONNX file, got {path!r} ({type(error).__name__})"
            ) from error

    def score(self, photo: bytes) -> float:
        """Probability in [0, 1] that a photo is unsafe.

        Args:
            photo: an encoded image that can be decoded.
        """
        (given,) = self._session.get_inputs()
        (scores,) = self._session.run(None, {given.name: prepare(photo)})
        return float(scores[0, 1])

    def check(self, photo: bytes, number: int) -> None:
        """Checks one photo of a request.

        Raises:
            InputError: the photo is rejected.
        """
        if self._session is None:
            return
        score = self.score(photo)
        if score >= self.threshold:
            raise InputError(
                f"photo {number} was rejected by the classifier of unsafe images "
                f"(score {score:.2f}, limit {self.threshold:g}); send another photo"
            )


def prepare(photo: bytes) -> Float[np.ndarray, "1 h w 3"]:
    """Center crop in BGR, minus the training mean, as the classifier expects."""
    with Image.open(io.BytesIO(photo)) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB").resize((SIDE, SIDE))
    edge = (SIDE - CROP) // 2
    pixels = np.asarray(picture, np.float32)[edge : edge + CROP, edge : edge + CROP, ::-1]
    return (pixels - np.array(MEAN, np.float32))[None]
