"""OpenPose's body points to the 33 of `landmarks`, with depth. Knows nothing of files or maps.

OpenPose, and DWPose in its format, have no depth, no points of the eyes' corners, and the feet and
fingers only where asked for. What is missing is put by the rules below, with visibility 0.
"""

import numpy as np
from jaxtyping import Bool, Float

from dreampose.poses.landmarks import INDEX, NAMES

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
"""Without these a frame shows nobody that could be followed."""
_NEEDED = (*_CORE, "nose", *(f"{s}_{n}" for s in ("left", "right")
           for n in ("elbow", "wrist", "knee", "ankle")))  # fmt: skip
"""Points that the body must show in some frame at least."""

# Lengths in units of the trunk (middle of the shoulders to middle of the hips), from the standing
# proportions that anthropometric tables give.
_WIDTHS = {"shoulder": 0.66, "hip": 0.38}
_LIMBS = {"shoulder": ("shoulder", "elbow", "wrist"), "hip": ("hip", "knee", "ankle")}
_NOSE = 0.2
_ASIDE = 0.1
"""A nose this far from the middle of the ears says for sure to which side the body is turned."""
_EARS = 0.3
_HAND = 0.28
_HEEL = 0.10
_FOOT = 0.36
_SEEN_FRONTAL = 0.8
"""A person whose widest is below this share of the standard width never faces the camera."""

Points = Float[np.ndarray, "t 33 2"]


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
    as they are narrower than the widest of the track; which side is nearer says the nose: a face
    to the right of its ears belongs to a person who turns that way. Arms and legs keep the depth
    of their roots.

    Args:
        places: x and y in pixels; what no frame shows is ignored.
        scores: in [0, 1]; 0 where a point is not seen.
        found: frames with shoulders and hips; the others mean nothing afterwards.
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
