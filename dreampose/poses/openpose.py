"""OpenPose's JSON, and DWPose's in its format, as a track. Knows nothing of folders or maps."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dreampose.errors import InputError
from dreampose.poses import keypoints
from dreampose.poses.estimators import Track
from dreampose.poses.landmarks import INDEX, NAMES
from dreampose.poses.placement import Placement
from dreampose.poses.tracking import BoxFollower

_SEEN = 0.05
"""Score from which a point counts as seen, as OpenPose itself draws it."""


def read(
    files: Sequence[Path | None],
    *,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    person: tuple[float, float] | None = None,
) -> tuple[Track, tuple[int, int]]:
    """The track of one person, and height and width of the pictures that it was read from.

    Args:
        files: a file a frame (None is a frame without a pose), or one with a list of frames.
        size: height and width that the points are placed into, as `video.fit` does.
        canvas: of the pictures, where the files have none.
        person: pixel x, y of the person at the beginning; else the largest is followed.

    Raises:
        InputError: a file is not of this form, the canvas is not known, or a point that the body
            needs is in no frame.
    """
    frames: list[dict[str, Any] | None] = []
    for path in files:
        frames += [None] if path is None else _read_json(path)
    people = [[] if frame is None else _people(frame) for frame in frames]
    height, width = canvas or _canvas(frames)
    largest = max((float(xy.max()) for frame in people for xy, _ in frame), default=0.0)
    # Some writers give shares of the picture; no body fits into one pixel.
    scale = np.array([width, height] if largest <= 1 else [1, 1], np.float32)
    places = np.zeros((len(frames), len(NAMES), 2), np.float32)
    scores = np.zeros((len(frames), len(NAMES)), np.float32)
    follower = BoxFollower(person)
    for index, found in enumerate(people):
        boxes = [
            [*(xy[seen > 0] * scale).min(axis=0), *(xy[seen > 0] * scale).max(axis=0)]
            for xy, seen in found
        ]
        chosen = follower.choose(np.array(boxes, np.float32).reshape(-1, 4), width)
        if chosen is not None:
            places[index], scores[index] = found[chosen][0] * scale, found[chosen][1]
    seen = scores > 0
    whole = keypoints.found_frames(seen)
    joints = np.zeros((len(frames), len(NAMES), 4), np.float32)
    if whole.any():
        if missing := keypoints.never_seen(seen[whole]):
            raise InputError(
                f"poses must show the whole body in some frame, got no {', no '.join(missing)} "
                f"in any of the {len(frames)} frames"
            )
        joints = keypoints.lift(places, scores, whole)
    track = Track(
        maps=None,
        joints=Placement.fit((height, width), size).move(joints),
        confidence=np.where(whole, scores.mean(axis=1), 0).astype(np.float32),
        found=whole,
        joint_names=NAMES,
    )
    return track, (height, width)


def _canvas(frames: Sequence[Mapping[str, Any] | None]) -> tuple[int, int]:
    stated = {
        (int(frame["canvas_height"]), int(frame["canvas_width"]))
        for frame in frames
        if frame is not None and "canvas_height" in frame and "canvas_width" in frame
    }
    if len(stated) != 1:
        got = f"{len(stated)} different ones" if stated else "none"
        raise InputError(
            f"canvas must be the height and width of the pictures, got {got} in the files: give it"
        )
    return stated.pop()


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"poses must be JSON, got {str(path)!r} ({error})") from error
    frames = content if isinstance(content, list) else [content]
    for frame in frames:
        if not isinstance(frame, dict) or not isinstance(frame.get("people"), list):
            raise InputError(
                f"poses must be OpenPose's JSON with a list 'people', got none in {str(path)!r}"
            )
    return frames


def _people(
    frame: Mapping[str, Any],
) -> list[tuple[Float[np.ndarray, "33 2"], Float[np.ndarray, " 33"]]]:
    """Places and scores of the points of `landmarks`, for everybody of whom any is seen."""
    people: list[tuple[np.ndarray, np.ndarray]] = []
    for person in frame["people"]:
        xy, scores = np.zeros((len(NAMES), 2), np.float32), np.zeros(len(NAMES), np.float32)
        body = _triples(person.get("pose_keypoints_2d", person.get("pose_keypoints")))
        if len(body) not in keypoints.LAYOUTS:
            raise InputError(
                f"poses must have 18 (COCO) or 25 (BODY_25) points a person, got {len(body)}"
            )
        named = list(zip(keypoints.LAYOUTS[len(body)], body, strict=True))
        for side in ("left", "right"):
            hand = _triples(person.get(f"hand_{side}_keypoints_2d"))
            if len(hand) == keypoints.NUM_HAND:
                named += [(f"{side}_{name}", hand[i]) for name, i in keypoints.HAND.items()]
        for name, (x, y, score) in named:
            if name in INDEX and score >= _SEEN:
                xy[INDEX[name]], scores[INDEX[name]] = (x, y), min(score, 1.0)
        if scores.any():
            people.append((xy, scores))
    return people


def _triples(values: Sequence[float | None] | None) -> Float[np.ndarray, "n 3"]:
    """Flat x, y, score lists as rows; a point that is null is one that is not seen."""
    try:
        flat = np.array([0 if value is None else value for value in values or ()], np.float32)
        return np.nan_to_num(flat).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"poses must give points as flat lists of x, y, score, got something else ({error})"
        ) from error
