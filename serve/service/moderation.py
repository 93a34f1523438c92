"""Whether photos are fit to be rendered, by an image classifier. Knows nothing of HTTP or Ray.

The classifier is Yahoo's open_nsfw as an ONNX file, of which the operator tells where it is; it is
not part of this package. It judges whole pictures and errs: it is a first sieve, no more.
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
"""Of its training pictures, in blue, green, red."""


class Screen:
    """Refuses photos; without a file of the classifier it refuses none.

    Args:
        path: of the classifier; empty: no photo is looked at.
        threshold: score in [0, 1] from which a photo is refused.

    Raises:
        InputError: the file is missing or is none, or onnxruntime is not installed.
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
                "nsfw_model must be left empty without onnxruntime: install dreampose[screening]"
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
        """How sure the classifier is that a photo is not safe for work, in [0, 1].

        Args:
            photo: a picture that can be decoded.
        """
        (given,) = self._session.get_inputs()
        (scores,) = self._session.run(None, {given.name: prepare(photo)})
        return float(scores[0, 1])

    def check(self, photo: bytes, number: int) -> None:
        """Looks at the photo of that number in a request.

        Raises:
            InputError: it is refused.
        """
        if self._session is None:
            return
        score = self.score(photo)
        if score >= self.threshold:
            raise InputError(
                f"photo must score below {self.threshold:g} with the classifier of unsafe "
                f"pictures, got {score:.2f} for photo {number}"
            )


def prepare(photo: bytes) -> Float[np.ndarray, "1 h w 3"]:
    """The middle of a photo as the classifier was trained on: blue, green, red less their mean."""
    with Image.open(io.BytesIO(photo)) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB").resize((SIDE, SIDE))
    edge = (SIDE - CROP) // 2
    pixels = np.asarray(picture, np.float32)[edge : edge + CROP, edge : edge + CROP, ::-1]
    return (pixels - np.array(MEAN, np.float32))[None]
