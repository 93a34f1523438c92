"""BlazePose's networks: person detector and landmark model.

Both process single pictures; `tracking` follows a person through a video. Weights and tensor
layouts are those of MediaPipe 0.10.14 (Apache-2.0, see NOTICE).
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.errors import InputError
from dreampose.io import assets

_DETECTOR_SIZE = 224
_LANDMARK_SIZE = 256
_STRIDES = ((8, 2), (16, 2), (32, 6))
"""Stride and number of anchors per cell of each detector layer."""
_REGION_SCALE = 1.25
"""Side of the region divided by the diameter of the circle around the body."""
_DEPTH_SCALE = 0.25
"""Converts the network's depth to the unit of x and y; calibrated so that the distance between the
shoulders is the same in side view and in front view."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rotated square around a person: centre and side in pixels, rotation in radians."""

    center: Float[np.ndarray, "2"]
    side: float
    turn: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A detected person: score in [0, 1] and the square around the body."""

    score: float
    region: Region


@dataclass(frozen=True, kw_only=True)
class Landmarks:
    """Landmarks of one person."""

    joints: Float[np.ndarray, "33 4"]
    """x, y and depth in pixels, and visibility in [0, 1]."""
    presence: float
    """Probability that the region shows a person."""
    region: Region
    """Region of the same person for the next frame."""
    mask: Float[np.ndarray, "256 256"] | None = None
    """Segmentation logits in the input region."""
    to_picture: Float[np.ndarray, "2 3"] | None = None
    """Affine transform from pixels of `mask` to pixels of the picture."""

    def segment(self, height: int, width: int) -> Float[np.ndarray, "H W"]:
        """Probability of the person in each pixel of a picture of the given size."""
        assert self.mask is not None
        assert self.to_picture is not None
        return cv2.warpAffine(
            _sigmoid(self.mask).astype(np.float32),
            self.to_picture,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=0,
        )


def region_between(hips: Float[np.ndarray, "2"], rim: Float[np.ndarray, "2"]) -> Region:
    """Square around a body, from the hips and BlazePose's point for size and rotation."""
    reach = rim - hips
    return Region(
        center=hips,
        side=float(np.hypot(*reach)) * 2 * _REGION_SCALE,
        turn=float(np.arctan2(reach[0], -reach[1])),
    )


def _sigmoid(values: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    return 1 / (1 + np.exp(-np.clip(values, -50, 50)))


def _anchors() -> Float[np.ndarray, "a 2"]:
    layers: list[Float[np.ndarray, "a 2"]] = []
    for stride, per_cell in _STRIDES:
        cells = _DETECTOR_SIZE // stride
        middles = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        grid = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)
        layers.append(np.repeat(grid, per_cell, axis=0))
    return np.concatenate(layers)


@contextmanager
def _silent_stderr() -> Generator[None, None, None]:
    """Suppresses messages of the LiteRT runtime, which bypass Python's stderr."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Network:
    """A TFLite graph with one input picture and named outputs."""

    def __init__(self, file: str, num_threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        path = assets.find(Path(__file__).parent / "data" / file)
        if not path.is_file():
            raise InputError(
                f"pose network {file!r} is missing: job uploads leave it out, so set "
                f"{assets.HOME} on every node to a checkout of the repository"
            )
        content = path.read_bytes()
        with _silent_stderr():
            self._interpreter: Any = Interpreter(model_content=content, num_threads=num_threads)
            self._interpreter.allocate_tensors()
        self._input: int = self._interpreter.get_input_details()[0]["index"]
        self._outputs: dict[str, int] = {
            detail["name"]: detail["index"] for detail in self._interpreter.get_output_details()
        }

    def __call__(
        self, picture: Float[np.ndarray, "1 s s 3"], *names: str
    ) -> list[Float[np.ndarray, "..."]]:
        self._interpreter.set_tensor(self._input, picture)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]


class PersonDetector:
    """Detects people in a picture."""

    def __init__(self, *, threshold: float, num_threads: int = 1) -> None:
        """Loads the weights; detections with a score below `threshold` are dropped."""
        self._network = _Network("pose_detection.tflite", num_threads)
        self._anchors = _anchors()
        self._threshold = threshold

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"]) -> list[Detection]:
        """Detects all people, ordered by decreasing score."""
        height, width = picture.shape[:2]
        scale = _DETECTOR_SIZE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas = np.zeros((_DETECTOR_SIZE, _DETECTOR_SIZE, 3), np.uint8)
        left, top = (_DETECTOR_SIZE - size[0]) // 2, (_DETECTOR_SIZE - size[1]) // 2
        canvas[top : top + size[1], left : left + size[0]] = cv2.resize(
            picture, size, interpolation=method
        )
        boxes, logits = self._network(
            (canvas[None] / 127.5 - 1).astype(np.float32), "Identity", "Identity_1"
        )
        scores = _sigmoid(logits[0, :, 0])
        kept = scores >= self._threshold
        scores, boxes, anchors = scores[kept], boxes[0, kept], self._anchors[kept] * _DETECTOR_SIZE
        offset = np.array([left, top], np.float32)
        points = (boxes[:, 4:].reshape(-1, 4, 2) + anchors[:, None] - offset) / scale
        middles = (boxes[:, :2] + anchors - offset) / scale
        spans = boxes[:, 2:4] / scale
        people: list[Detection] = []
        for group in _suppress(middles, spans, scores):
            # As in MediaPipe, boxes of one person are averaged with their scores as weights.
            weights = scores[group][:, None] / scores[group].sum()
            hips, rim = ((points[group, index] * weights).sum(axis=0) for index in (0, 1))
            people.append(
                Detection(score=float(scores[group].max()), region=region_between(hips, rim))
            )
        return people


def _suppress(
    middles: Float[np.ndarray, "n 2"],
    spans: Float[np.ndarray, "n 2"],
    scores: Float[np.ndarray, " n"],
    overlap: float = 0.3,
) -> list[list[int]]:
    """Groups boxes by intersection over union, ordered by decreasing score."""
    low, high = middles - spans / 2, middles + spans / 2
    areas = np.prod(np.maximum(spans, 1e-6), axis=1)
    left = np.argsort(-scores, kind="stable")
    groups: list[list[int]] = []
    while len(left):
        best = left[0]
        shared = np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])
        shared = np.prod(np.maximum(shared, 0), axis=1)
        same = shared / (areas[best] + areas[left] - shared) > overlap
        same[0] = True
        groups.append([int(index) for index in left[same]])
        left = left[~same]
    return groups


class LandmarkReader:
    """Estimates the 33 landmarks of the person in a region."""

    def __init__(self, *, num_threads: int = 1) -> None:
        """Loads the weights."""
        self._network = _Network("pose_landmark_full.tflite", num_threads)

    def __call__(self, picture: UInt8[np.ndarray, "H W 3"], region: Region) -> Landmarks:
        """Landmarks in pixels of the picture, with depth in the same unit."""
        cosine, sine = np.cos(region.turn), np.sin(region.turn)
        scale = region.side / _LANDMARK_SIZE
        turned = scale * np.array([[cosine, -sine], [sine, cosine]])
        to_picture = np.concatenate(
            [turned, (region.center - turned @ np.full(2, _LANDMARK_SIZE / 2))[:, None]], axis=1
        )
        crop = cv2.warpAffine(
            picture,
            to_picture,
            (_LANDMARK_SIZE, _LANDMARK_SIZE),
            flags=cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if scale > 1 else cv2.INTER_CUBIC),
            borderMode=cv2.BORDER_REPLICATE,
        )
        raw, presence, mask = self._network(
            (crop[None] / 255).astype(np.float32), "Identity", "Identity_1", "Identity_2"
        )
        raw = raw.reshape(39, 5)
        places = raw[:, :2] @ to_picture[:, :2].T + to_picture[:, 2]
        joints = np.concatenate(
            [places, raw[:, 2:3] * scale * _DEPTH_SCALE, _sigmoid(raw[:, 3:4])], axis=1
        )
        return Landmarks(
            joints=joints[:33].astype(np.float32),
            presence=float(presence[0, 0]),
            region=region_between(places[33].astype(np.float32), places[34].astype(np.float32)),
            mask=np.asarray(mask[0, :, :, 0]),
            to_picture=to_picture,
        )
