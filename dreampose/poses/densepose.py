"""DensePose as an exported TorchScript module.

This project contains no DensePose weights; docs/poses.md explains how to obtain or export them.
"""

import importlib
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from dreampose.errors import InputError
from dreampose.poses.parts import NUM_PARTS

_FIELDS = (
    "pred_boxes",
    "pred_densepose_coarse_segm",
    "pred_densepose_fine_segm",
    "pred_densepose_u",
    "pred_densepose_v",
)
"""Outputs of a module: keys of a dictionary, or order of a tuple."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Outputs of the network for all people in one picture.

    Attributes:
        boxes: corners x, y, x, y in pixels.
        scores: in [0, 1]; None if the module returns none.
        coarse: logits of background and body.
        fine: logits of background and the 24 parts.
        u: U for each class of `fine`.
        v: V for each class of `fine`.
    """

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"] | None
    coarse: Float[Tensor, "n b s s"]
    fine: Float[Tensor, "n 25 r r"]
    u: Float[Tensor, "n 25 r r"]
    v: Float[Tensor, "n 25 r r"]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Body surface of one person in a picture."""

    labels: UInt8[np.ndarray, "H W"]
    """DensePose part, 0 on the background."""
    uv: Float[np.ndarray, "2 H W"]
    """U and V in [0, 1], 0 on the background."""
    confidence: float
    """In [0, 1]."""


class SurfaceReader:
    """Runs a TorchScript module that estimates the surface of all people in a picture."""

    def __init__(self, path: str | Path, *, threshold: float, device: str) -> None:
        """Loads the module; people with a score below `threshold` are dropped.

        Raises:
            InputError: the file is not TorchScript, or requires torchvision, which is missing.
        """
        self._path = str(path)
        self._threshold = threshold
        self._device = device
        self._module = _load(self._path, device)
        names = {argument.name for argument in self._module.forward.schema.arguments}
        self._reversed = "bgr" in names

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"]) -> Findings:
        """Estimates the surface of all people in the picture.

        The input of the module is one 8-bit RGB image (3, H, W), or BGR if its `forward` has an
        argument `bgr`, as in modules exported from detectron2's predictor.

        Raises:
            InputError: the module fails, or its outputs have another form.
        """
        pixels = picture[..., ::-1] if self._reversed else picture
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        try:
            with torch.no_grad():
                answer = self._module(image.to(self._device))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(
                f"densepose model must accept one 8-bit image (3, height, width), got "
                f"{self._path!r}, which fails on it ({reason})"
            ) from error
        return self._without_unsure(self._read(answer))

    def _read(self, answer: Any) -> Findings:
        scores = None
        if isinstance(answer, Mapping):
            missing = [name for name in _FIELDS if name not in answer]
            if missing:
                raise self._refusal(f"{', '.join(_FIELDS)}", f"no {' and no '.join(missing)}")
            tensors = [answer[name] for name in _FIELDS]
            scores = answer.get("scores")
        elif isinstance(answer, Sequence) and len(answer) == len(_FIELDS):
            tensors = list(answer)
        else:
            raise self._refusal(
                f"a dictionary or a tuple of {', '.join(_FIELDS)}", f"a {type(answer).__name__}"
            )
        boxes, coarse, fine, u, v = (value.float().cpu() for value in tensors)
        num_people = len(boxes)
        if num_people == 0:
            # Empty outputs have no meaningful shapes.
            nothing = torch.zeros(0, NUM_PARTS + 1, 1, 1)
            return Findings(
                boxes=torch.zeros(0, 4), scores=None, coarse=nothing, fine=nothing, u=nothing,
                v=nothing,
            )  # fmt: skip
        if boxes.shape != (num_people, 4):
            raise self._refusal("pred_boxes of shape (n, 4)", str(tuple(boxes.shape)))
        for name, values in zip(_FIELDS[1:], (coarse, fine, u, v), strict=True):
            num_channels = values.shape[1] if values.ndim == 4 else 0
            parts = name != _FIELDS[1]
            if len(values) != num_people or not (
                num_channels == NUM_PARTS + 1 if parts else num_channels > 1
            ):
                wanted = NUM_PARTS + 1 if parts else "2 or more"
                raise self._refusal(
                    f"{name} of shape ({num_people}, {wanted}, height, width)",
                    str(tuple(values.shape)),
                )
        return Findings(
            boxes=boxes,
            scores=None if scores is None else scores.float().cpu(),
            coarse=coarse,
            fine=fine,
            u=u,
            v=v,
        )

    def _without_unsure(self, found: Findings) -> Findings:
        kept = found.boxes.isfinite().all(dim=1)
        if found.scores is not None:
            kept &= found.scores >= self._threshold
        return Findings(
            boxes=found.boxes[kept],
            scores=None if found.scores is None else found.scores[kept],
            coarse=found.coarse[kept],
            fine=found.fine[kept],
            u=found.u[kept],
            v=found.v[kept],
        )

    def _refusal(self, expected: str, got: str) -> InputError:
        return InputError(f"densepose model must return {expected}, got {got} from {self._path!r}")


def surface(found: Findings, index: int, height: int, width: int) -> Surface | None:
    """Resamples the surface of one person to a picture of `height x width`.

    As in the published code, corner and size of the box are truncated to integers, and the maps are
    resized to it bilinearly. Pixels that the coarse map classifies as body get the part with the
    highest score and the U and V of that part. The surface is clipped to the picture.

    Returns:
        The surface; None if no pixel of the person lies in the picture.
    """
    x, y, x_end, y_end = found.boxes[index].tolist()
    left, top = math.floor(x), math.floor(y)
    size = max(int(y_end - y), 1), max(int(x_end - x), 1)
    top_in, left_in = max(top, 0), max(left, 0)
    bottom_in, right_in = min(top + size[0], height), min(left + size[1], width)
    if top_in >= bottom_in or left_in >= right_in:
        return None
    seen = np.s_[..., top_in - top : bottom_in - top, left_in - left : right_in - left]

    def scale(maps: Float[Tensor, "n c _ _"]) -> Float[Tensor, "c _ _"]:
        scaled = functional.interpolate(maps[index : index + 1], size=size, mode="bilinear")
        return scaled[0][seen]

    coarse = scale(found.coarse)
    body = coarse.argmax(dim=0) > 0
    if not body.any():
        return None
    part = torch.where(body, scale(found.fine).argmax(dim=0), 0)
    uv = torch.cat([scale(maps).gather(0, part[None]) for maps in (found.u, found.v)])
    labels = np.zeros((height, width), np.uint8)
    places = np.zeros((2, height, width), np.float32)
    labels[top_in:bottom_in, left_in:right_in] = part.numpy()
    places[:, top_in:bottom_in, left_in:right_in] = torch.where(part > 0, uv, 0).numpy()
    if not labels.any():
        return None
    if found.scores is not None:
        confidence = float(found.scores[index])
    else:
        confidence = float((1 - coarse.softmax(dim=0)[0])[body].mean())
    return Surface(labels=labels, uv=places, confidence=min(max(confidence, 1e-3), 1.0))


def _load(path: str, device: str) -> Any:
    # The modules use torchvision's non-maximum suppression, which its import registers.
    with suppress(ImportError, RuntimeError):
        importlib.import_module("torchvision")
    try:
        with warnings.catch_warnings():
            # TorchScript is deprecated, but these models exist in no other format.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(path, map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        text = str(error)
        if "torchvision::" in text:
            raise InputError(
                f"estimator densepose requires torchvision for the model {path!r}, but it is not "
                f"installed; run pip install torchvision, in the version for torch "
                f"{torch.__version__}"
            ) from error
        raise InputError(
            f"densepose model must be a TorchScript file, got {path!r} "
            f"({text.strip().splitlines()[0]})"
        ) from error
    # CPUs lack half-precision kernels.
    return module.float() if device == "cpu" else module
