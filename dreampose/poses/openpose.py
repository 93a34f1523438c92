"""OpenPose's JSON, also as DWPose writes it, as a pose track.

OpenPose has no depth, no points of the eyes' corners, and the feet and fingers only where asked
for. What is missing is placed by the rules of `lift`, with visibility 0.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import InputError, PointsOutsideWarning
from dreampose.poses.estimators import Track
from dreampose.poses.landmarks import INDEX, NAMES
from dreampose.poses.placement import Placement
from dreampose.poses.quality import as_ranges
from dreampose.poses.tracking import BoxFollower

_SEEN = 0.05
"""Score from which a point counts as seen, as OpenPose itself draws it."""


_COCO = (
    *("nose", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("right_eye_middle", "left_eye_middle", "right_ear", "left_ear"),
)
_FEET = ("left_foot", "left_small_toe", "left_heel", "right_foot", "right_small_toe", "right_heel")
LAYOUTS = {18: _COCO, 25: (*_COCO[:8], "middle_hip", *_COCO[8:], *_FEET)}
"""Names of the points by their number: COCO's 18 and BODY_25."""

NUM_HAND = 21
HAND = {"thumb": 2, "index": 5, "pinky": 17}
"""Which of a hand's points stand for the three of `landmarks`."""

_CORE = ("left_shoulder", "right_shoulder", "left_hip", "right_hip")
"""Points without which a frame counts as one without a pose."""
_NEEDED = (*_CORE, "nose", *(f"{s}_{n}" for s in ("left", "right")
           for n in ("elbow", "wrist", "knee", "ankle")))  # fmt: skip
"""Points that the body must show in some frame at least."""

# Lengths in units of the trunk (middle of the shoulders to middle of the hips), from the standing
# proportions that anthropometric tables give.
_WIDTHS = {"shoulder": 0.66, "hip": 0.38}
_LIMBS = {"shoulder": ("shoulder", "elbow", "wrist"), "hip": ("hip", "knee", "ankle")}
_NOSE = 0.2
_ASIDE = 0.1
"""Offset of the nose from the middle of the ears that fixes the side the body turns to."""
_EARS = 0.3
_HAND = 0.28
_HEEL = 0.10
_FOOT = 0.36
_SEEN_FRONTAL = 0.8
"""A person whose widest is below this share of the standard width never faces the camera."""


Points = Float[np.ndarray, "t 33 2"]
Person = tuple[Float[np.ndarray, "33 2"], Float[np.ndarray, " 33"]]
"""Places and scores of one person's points; score 0 where not seen."""

_MOST_OUTSIDE = 1 / 3
"""Share of the points outside the canvas above which the canvas is wrong."""


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
    people: list[list[Person]] = []
    for path in files:
        content = [None] if path is None else _read_json(path)
        frames += content
        people += [[] if frame is None else _people(frame, str(path)) for frame in content]
    height, width = canvas or _canvas(frames)
    people = _in_pixels(people, height, width)
    places = np.zeros((len(frames), len(NAMES), 2), np.float32)
    scores = np.zeros((len(frames), len(NAMES)), np.float32)
    follower = BoxFollower(person)
    for index, found in enumerate(people):
        boxes = [[*xy[seen > 0].min(axis=0), *xy[seen > 0].max(axis=0)] for xy, seen in found]
        chosen = follower.choose(np.array(boxes, np.float32).reshape(-1, 4), width)
        if chosen is not None:
            places[index], scores[index] = found[chosen]
    seen = scores > 0
    _check_canvas(places, seen, (height, width))
    whole = found_frames(seen)
    joints = np.zeros((len(frames), len(NAMES), 4), np.float32)
    if whole.any():
        if missing := never_seen(seen[whole]):
            raise InputError(
                f"poses must show the whole body in some frame, got no {', no '.join(missing)} "
                f"in any of the {len(frames)} frames"
            )
        joints = lift(places, scores, whole)
    placement = Placement.fit((height, width), size)
    corners = placement.move(np.array([[0, 0, 0, 0], [width, height, 0, 0]], np.float32))
    (left, top), (right, bottom) = corners[:, :2].tolist()
    track = Track(
        maps=None,
        joints=placement.move(joints),
        confidence=np.where(whole, scores.mean(axis=1), 0).astype(np.float32),
        found=whole,
        joint_names=NAMES,
        picture=(left, top, right, bottom),
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
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"poses must be JSON, got {str(path)!r} ({error})") from error
    frames = content if isinstance(content, list) else [content]
    for frame in frames:
        if not isinstance(frame, dict) or not isinstance(frame.get("people"), list):
            raise InputError(
                f"poses must be OpenPose's JSON with a list 'people', got none in {str(path)!r}"
            )
    return frames


def _people(frame: Mapping[str, Any], source: str) -> list[Person]:
    """All people with at least one body point; entries without body points are skipped."""
    people: list[Person] = []
    for person in frame["people"]:
        if not isinstance(person, Mapping):
            continue
        entry: Mapping[str, Any] = person
        xy, scores = np.zeros((len(NAMES), 2), np.float32), np.zeros(len(NAMES), np.float32)
        body = _triples(entry.get("pose_keypoints_2d", entry.get("pose_keypoints")), source)
        if not len(body):
            continue
        if len(body) not in LAYOUTS:
            raise InputError(
                f"poses must have 18 (COCO) or 25 (BODY_25) points a person, got {len(body)} "
                f"in {source!r}"
            )
        named = list(zip(LAYOUTS[len(body)], body, strict=True))
        for side in ("left", "right"):
            hand = _triples(entry.get(f"hand_{side}_keypoints_2d"), source)
            if len(hand) == NUM_HAND:
                named += [(f"{side}_{name}", hand[i]) for name, i in HAND.items()]
        for name, (x, y, score) in named:
            if name in INDEX and score >= _SEEN:
                xy[INDEX[name]], scores[INDEX[name]] = (x, y), min(score, 1.0)
        if scores.any():
            people.append((xy, scores))
    return people


def _in_pixels(people: list[list[Person]], height: int, width: int) -> list[list[Person]]:
    """Points in pixels, from shares of the picture in [0, 1] or in [-1, 1] where they are such."""
    seen = [xy[scores > 0] for frame in people for xy, scores in frame]
    if not seen:
        return people
    points = np.concatenate(seen)
    # No body fits into one pixel.
    if points.max() > 1 or points.min() < -1:
        return people
    size = np.array([width, height], np.float32)
    shift, scale = (1.0, size / 2) if points.min() < 0 else (0.0, size)
    return [[((xy + shift) * scale, scores) for xy, scores in frame] for frame in people]


def _check_canvas(places: Points, seen: Bool[np.ndarray, "t 33"], canvas: tuple[int, int]) -> None:
    """Refuses a canvas that most points lie outside of, and warns where some do.

    Raises:
        InputError: more than a third of the points lie outside.

    Warns:
        PointsOutsideWarning: some do.
    """
    height, width = canvas
    if not seen.any():
        return
    x, y = places[seen].T
    out = (x < 0) | (y < 0) | (x > width) | (y > height)
    if out.mean() > _MOST_OUTSIDE:
        turned = f" (height first; is it {width}x{height}?)"
        raise InputError(
            f"canvas must hold the points, got {height}x{width}{turned} for points that reach "
            f"from x={x.min():.0f}, y={y.min():.0f} to x={x.max():.0f}, y={y.max():.0f}"
        )
    if out.any():
        frames = np.zeros(seen.shape, bool)
        frames[seen] = out
        numbers = np.flatnonzero(frames.any(axis=1)).tolist()
        warn(
            f"{out.sum()} of {seen.sum()} points lie outside the canvas of {height}x{width}, "
            f"in frames {as_ranges(numbers)}",
            PointsOutsideWarning,
            stacklevel=4,
        )


def _triples(values: Sequence[float | None] | None, source: str) -> Float[np.ndarray, "n 3"]:
    """Flat x, y, score lists as rows; a point that is null is one that is not seen."""
    try:
        flat = np.array([0 if value is None else value for value in values or ()], np.float32)
        return np.nan_to_num(flat).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"poses must give points as flat lists of x, y, score, "
            f"got something else in {source!r} ({error})"
        ) from error


def found_frames(seen: Bool[np.ndarray, "t 33"]) -> Bool[np.ndarray, " t"]:
    """Frames that show both shoulders and both hips."""
    core: np.ndarray = np.all(seen[:, [INDEX[name] for name in _CORE]], axis=1)
    return core


def never_seen(seen: Bool[np.ndarray, "t 33"]) -> list[str]:
    """Names of the points that a track needs and no frame of it shows."""
    ears = ["left_ear or right_ear"] * (not (seen[:, INDEX["left_ear"]] |
                                             seen[:, INDEX["right_ear"]]).any())  # fmt: skip
    return [name for name in _NEEDED if not seen[:, INDEX[name]].any()] + ears


def lift(
    places: Points, scores: Float[np.ndarray, "t 33"], found: Bool[np.ndarray, " t"]
) -> Float[np.ndarray, "t 33 4"]:
    """The 33 points with depth, from points in the picture.

    A point that a frame does not show is interpolated over time, relative to the hips; ears stand
    in for each other, and a nose behind the ears is that of a back. Shoulders and hips are as deep
    as they are narrower than the widest of the track; the nose gives the nearer side: a face
    to the right of its ears belongs to a person who turns that way. Arms and legs keep the depth
    of their roots.

    Args:
        places: x and y in pixels; what no frame shows is ignored.
        scores: in [0, 1]; 0 where a point is not seen.
        found: frames with shoulders and hips; the result of other frames is undefined.
    """
    seen = scores > 0
    xy = _over_time(places.astype(np.float64), seen & found[:, None])
    at = {name: xy[:, index] for name, index in INDEX.items()}
    face_seen = seen[:, INDEX["nose"]]

    def middle(name: str) -> Float[np.ndarray, "t 2"]:
        return (at[f"left_{name}"] + at[f"right_{name}"]) / 2

    left_ear, right_ear = seen[:, INDEX["left_ear"]], seen[:, INDEX["right_ear"]]
    at["left_ear"] = np.where((right_ear & ~left_ear)[:, None], at["right_ear"], at["left_ear"])
    at["right_ear"] = np.where((left_ear & ~right_ear)[:, None], at["left_ear"], at["right_ear"])
    trunk = np.maximum(np.linalg.norm(middle("shoulder") - middle("hip"), axis=1), 1e-6)
    trunk = np.maximum(trunk, np.median(trunk[found]) / 2)
    aside = _aside(at["nose"][:, 0] - middle("ear")[:, 0], face_seen & found)
    turned = np.clip(aside / (_ASIDE * trunk), -1, 1)

    depth = {name: np.zeros(len(xy)) for name in NAMES}
    for name, standard in _WIDTHS.items():
        across = at[f"left_{name}"][:, 0] - at[f"right_{name}"][:, 0]
        widest = float(np.quantile(np.abs(across / trunk)[found], 0.95))
        full = trunk * (standard if widest < _SEEN_FRONTAL * standard else widest)
        half = np.sqrt(np.maximum(full**2 - across**2, 0)) / 2 * turned
        for joint in _LIMBS[name]:
            depth[f"left_{joint}"], depth[f"right_{joint}"] = half, -half

    # The body's own directions in the picture's plane and in depth, as unit vectors (x, depth).
    left = np.stack(
        [
            at["left_shoulder"][:, 0] - at["right_shoulder"][:, 0],
            depth["left_shoulder"] - depth["right_shoulder"],
        ]
    )
    left = left / np.maximum(np.linalg.norm(left, axis=0), 1e-6)
    forward = np.stack([left[1], -left[0]])
    _add_head(at, depth, trunk, left, forward, seen)
    for side in ("left", "right"):
        _add_hand(at, depth, side, seen)
        _add_foot(at, depth, side, trunk, forward, seen)
    joints = np.zeros((len(xy), len(NAMES), 4), np.float32)
    for name, index in INDEX.items():
        joints[:, index, :2], joints[:, index, 2] = at[name], depth[name]
    joints[..., 3] = scores
    return joints


def _over_time(
    places: Float[np.ndarray, "t k 2"], seen: Bool[np.ndarray, "t k"]
) -> Float[np.ndarray, "t k 2"]:
    """Places with those not seen interpolated in time, relative to the middle of the hips."""
    times = np.arange(len(places))
    hips_seen = seen[:, INDEX["left_hip"]] & seen[:, INDEX["right_hip"]]
    hips = (places[:, INDEX["left_hip"]] + places[:, INDEX["right_hip"]]) / 2
    root = np.stack([np.interp(times, times[hips_seen], hips[hips_seen, a]) for a in (0, 1)], -1)
    filled = places - root[:, None]
    for index in range(places.shape[1]):
        known = seen[:, index]
        if known.any():
            for axis in (0, 1):
                filled[:, index, axis] = np.interp(times, times[known], filled[known, index, axis])
        else:
            filled[:, index] = 0
    return filled + root[:, None]


def _aside(
    offsets: Float[np.ndarray, " t"], seen: Bool[np.ndarray, " t"]
) -> Float[np.ndarray, " t"]:
    """How far the nose lies to the right of the ears; interpolated where a back hides it."""
    times = np.arange(len(offsets))
    if not seen.any():
        return np.zeros(len(offsets))
    return np.interp(times, times[seen], offsets[seen])


def _add_head(
    at: dict[str, Float[np.ndarray, "t 2"]],
    depth: dict[str, Float[np.ndarray, " t"]],
    trunk: Float[np.ndarray, " t"],
    left: Float[np.ndarray, "2 t"],
    forward: Float[np.ndarray, "2 t"],
    seen: Bool[np.ndarray, "t 33"],
) -> None:
    """Depth of the face; a nose that is not seen lies before the ears, away from us."""
    face_seen = seen[:, INDEX["nose"]]
    ears = (at["left_ear"] + at["right_ear"]) / 2
    ahead = ears + np.stack([forward[0] * _NOSE * trunk, 0.05 * trunk], axis=1)
    at["nose"] = np.where(face_seen[:, None], at["nose"], ahead)
    out = at["nose"][:, 0] - ears[:, 0]
    depth["nose"] = np.sign(forward[1]) * np.sqrt(np.maximum((_NOSE * trunk) ** 2 - out**2, 0))
    for side, sign in (("left", 1), ("right", -1)):
        depth[f"{side}_ear"] = sign * left[1] * _EARS / 2 * trunk
        for place in ("inner", "middle", "outer"):
            eye = f"{side}_eye_{place}"
            given = seen[:, INDEX[eye], None]
            at[eye], depth[eye] = np.where(given, at[eye], at["nose"]), depth["nose"]
        at[f"mouth_{side}"], depth[f"mouth_{side}"] = at["nose"], depth["nose"]


def _add_hand(
    at: dict[str, Float[np.ndarray, "t 2"]],
    depth: dict[str, Float[np.ndarray, " t"]],
    side: str,
    seen: Bool[np.ndarray, "t 33"],
) -> None:
    """Fingers that are not given go on from the forearm."""
    beyond = at[f"{side}_wrist"] + _HAND * (at[f"{side}_wrist"] - at[f"{side}_elbow"])
    for finger in HAND:
        name = f"{side}_{finger}"
        at[name] = np.where(seen[:, INDEX[name], None], at[name], beyond)
        depth[name] = depth[f"{side}_wrist"]


def _add_foot(
    at: dict[str, Float[np.ndarray, "t 2"]],
    depth: dict[str, Float[np.ndarray, " t"]],
    side: str,
    trunk: Float[np.ndarray, " t"],
    forward: Float[np.ndarray, "2 t"],
    seen: Bool[np.ndarray, "t 33"],
) -> None:
    """A heel that is not given lies under the ankle, toes before it where the body faces."""
    ankle = at[f"{side}_ankle"]
    shin = ankle - at[f"{side}_knee"]
    down = shin / np.maximum(np.linalg.norm(shin, axis=1, keepdims=True), 1e-6)
    under = ankle + down * (_HEEL * trunk)[:, None]
    ahead = under + np.stack([forward[0] * _FOOT * trunk, np.zeros(len(trunk))], axis=1)
    for name, place, reach in (("heel", under, 0.0), ("foot", ahead, _FOOT)):
        point = f"{side}_{name}"
        at[point] = np.where(seen[:, INDEX[point], None], at[point], place)
        depth[point] = depth[f"{side}_ankle"] + forward[1] * reach * trunk
