"""Edits of a motion: smoothing, looping, speed, mirroring, joining, retargeting, foot lock."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import InputError
from dreampose.poses.landmarks import ABSENT, INDEX, body_height, point
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.poses.sides import OPPOSITE

_SIDES = ("left", "right")
_LARGEST_RATIO = 1.3
"""Limb lengths are changed by this factor at the most: one photo measures them roughly."""
_STILL = 0.25
"""Speed of a standing foot in body heights per second, at the most."""
_SHORTEST_STANCE = 0.1
"""Shortest time in seconds for which a foot is held in place."""
_RELEASE = 0.1
"""Time in seconds over which a held foot returns to its own path."""
_FOOT = ("ankle", "heel", "foot")


def trim(motion: Motion, start: float, end: float | None = None) -> Motion:
    """The part from `start` to `end`, in seconds; to the motion's end where None.

    Raises:
        InputError: the part is empty or begins outside the motion.
    """
    length = motion.num_frames / motion.fps
    last = length if end is None else min(end, length)
    if not 0 <= start < last:
        raise InputError(
            f"trim: must begin before it ends, within {length:.2f} s, got {start:g} to {last:g} s"
        )
    first = min(round(start * motion.fps), motion.num_frames - 1)
    return motion.between(first, max(first + 1, round(last * motion.fps)))


def smooth(motion: Motion, seconds: float) -> Motion:
    """Takes out movement faster than about `seconds`, without delay (zero phase).

    A Gaussian over time whose full width is `seconds`. Straight movement stays as it is to the
    ends. Points that are left out of the maps have no part in it.

    Raises:
        InputError: `seconds` is negative, or the maps cannot be painted anew.
    """
    if not seconds >= 0:
        raise InputError(f"smooth: must be at least 0 seconds, got {seconds:g}")
    _require_points(motion, "smooth")
    sigma = seconds * motion.fps / 2.355
    radius = min(int(np.ceil(3 * sigma)), motion.num_frames - 1)
    if sigma < 0.1 or radius < 1:
        return motion
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (motion.joints[..., 3] > ABSENT).astype(np.float64)
    places = motion.joints[..., :3].astype(np.float64)

    def filtered(values: np.ndarray, odd: bool) -> np.ndarray:
        pad = ((radius, radius), *((0, 0),) * (values.ndim - 1))
        kind = "odd" if odd else "even"
        padded = np.pad(values, pad, mode="reflect", reflect_type=kind)
        return np.apply_along_axis(np.convolve, 0, padded, kernel, "valid")

    if (weights == 1).all():
        smoothed = filtered(places, True) / kernel.sum()
    else:
        total = filtered(weights, False)[..., None]
        smoothed = filtered(places * weights[..., None], False) / np.maximum(total, 1e-6)
        smoothed = np.where(total > 1e-6, smoothed, places)
    joints = motion.joints.copy()
    joints[..., :3] = smoothed
    return _painted(motion, joints)


def change_speed(motion: Motion, factor: float) -> Motion:
    """The movement `factor` times as fast, at the same frame rate.

    Raises:
        InputError: the factor is not positive.
    """
    if not factor > 0:
        raise InputError(f"speed: must be positive, got {factor:g}")
    return replace(motion.resample(motion.fps / factor), fps=motion.fps)


def mirror(motion: Motion) -> Motion:
    """The movement seen in a mirror: left and right of picture and body exchanged.

    Raises:
        InputError: the maps cannot be painted anew.
    """
    _require_points(motion, "mirror")
    joints = motion.joints[:, OPPOSITE].copy()
    joints[..., 0] = motion.width - joints[..., 0]
    return _painted(motion, joints)


def loop(motion: Motion, seconds: float) -> Motion:
    """A motion that can be repeated: its last `seconds` are blended into its first ones.

    The motion becomes shorter by `seconds`; its last frame leads to its first.

    Raises:
        InputError: `seconds` is not positive, or longer than half of the motion; or the maps
            cannot be painted anew.
    """
    _require_points(motion, "loop")
    length = motion.num_frames / motion.fps
    num = round(seconds * motion.fps)
    if not 1 <= num <= motion.num_frames // 2:
        raise InputError(
            f"loop: seconds must be between {1 / motion.fps:.2f} and half of the motion's "
            f"{length:.2f} s, got {seconds:g}"
        )
    keep = motion.num_frames - num
    head, tail = motion.joints[:num], motion.joints[keep:]
    joints = motion.joints[:keep].copy()
    joints[:num] = _blend(tail, head)
    return _painted(motion.between(0, keep), joints)


def join(motions: Sequence[Motion], seconds: float = 0.0) -> Motion:
    """Motions one after the other, at the frame rate and size of the first.

    Args:
        motions: at least one.
        seconds: over which the end of each is blended into the beginning of the next; the whole
            becomes shorter by that.

    Raises:
        InputError: none is given; they differ in size, channels or kind; a part is shorter than
            the blend; or maps that cannot be painted anew would have to be blended.
    """
    if not motions:
        raise InputError("join: needs at least one motion, got none")
    first = motions[0]
    parts = [m if m.fps == first.fps else m.resample(first.fps) for m in motions]
    for part in parts[1:]:
        ours, theirs = ((m.maps.shape[1:], m.joint_names, m.painted) for m in (first, part))
        if ours != theirs:
            raise InputError(
                f"join: motions must be of one size and kind, got {first.height}x{first.width} "
                f"by {first.estimator!r} and {part.height}x{part.width} by {part.estimator!r}"
            )
    num = round(seconds * first.fps)
    if num:
        _require_points(first, "join")
        for part in parts:
            if part.num_frames < 2 * num:
                raise InputError(
                    f"join: blends must be at most half as long as each motion, got "
                    f"{seconds:g} s for one of {part.num_frames / part.fps:.2f} s"
                )
    joints, flags = parts[0].joints, _flags(parts[0])
    confidence, maps = parts[0].confidence, parts[0].maps
    for part in parts[1:]:
        seam = len(joints) - num
        middle = _blend(joints[seam:], part.joints[:num]) if num else joints[:0]
        joints = np.concatenate([joints[:seam], middle, part.joints[num:]])
        confidence = np.concatenate([confidence[:seam], part.confidence])
        flags = np.concatenate([flags[:seam], _flags(part)])
        maps = np.concatenate([maps[:seam], part.maps])
    whole = replace(
        first,
        maps=maps,
        joints=joints,
        confidence=confidence,
        num_filled=int((confidence == 0).sum()),
        places=None,
        flags=flags,
    )
    return _painted(whole, joints) if num else whole


def retarget(motion: Motion, body: Motion) -> Motion:
    """Gives the motion the limb lengths of another body, in proportion to its height.

    Directions of the bones stay; the lower foot of each frame stays at its height. Lengths are
    those of the two motions' medians, left and right averaged, changed by 30% at the most.
    `align` brings the motion to the body's size and place.

    Args:
        motion: painted from the 33 points.
        body: the motion of a photo.

    Raises:
        InputError: one of them has no body points.
    """
    _require_points(motion, "retarget")
    _require_points(body, "retarget")
    ratios = {
        name: float(np.clip(theirs / max(ours, 1e-6), 1 / _LARGEST_RATIO, _LARGEST_RATIO))
        for (name, ours), theirs in zip(
            _proportions(motion.joints).items(), _proportions(body.joints).values(), strict=True
        )
    }
    old, new = motion.joints[..., :3], motion.joints[..., :3].copy()

    def place(name: str, parent_old: np.ndarray, parent_new: np.ndarray, ratio: float) -> None:
        new[:, INDEX[name]] = parent_new + ratio * (old[:, INDEX[name]] - parent_old)

    hips = point(motion.joints, "middle_hip")
    for side in _SIDES:
        place(f"{side}_hip", hips, hips, ratios["hips"])
    spine = ratios["trunk"] * (point(motion.joints, "middle_shoulder") - hips)
    chest_old, chest_new = point(motion.joints, "middle_shoulder"), hips + spine
    for side in _SIDES:
        place(f"{side}_shoulder", chest_old, chest_new, ratios["shoulders"])
    ears_old = point(motion.joints, "middle_ear")
    ears_new = chest_new + ratios["neck"] * (ears_old - chest_old)
    for name in INDEX:
        if any(part in name for part in ("nose", "eye", "ear", "mouth")):
            place(name, ears_old, ears_new, ratios["neck"])
    chains = (
        ("shoulder", "elbow", "upper_arm"),
        ("elbow", "wrist", "forearm"),
        *((("wrist", finger, "forearm")) for finger in ("pinky", "index", "thumb")),
        ("hip", "knee", "thigh"),
        ("knee", "ankle", "shin"),
        ("ankle", "heel", "shin"),
        ("ankle", "foot", "shin"),
    )
    for side in _SIDES:
        for start, end, ratio in chains:
            parent = INDEX[f"{side}_{start}"]
            place(f"{side}_{end}", old[:, parent], new[:, parent], ratios[ratio])
    feet = [INDEX[f"{side}_{name}"] for side in _SIDES for name in _FOOT]
    lift = old[:, feet, 1].max(axis=1) - new[:, feet, 1].max(axis=1)
    new[..., 1] += lift[:, None]
    joints = motion.joints.copy()
    joints[..., :3] = new
    return _painted(motion, joints)


def lock_feet(motion: Motion) -> Motion:
    """Holds standing feet in place: a foot that hardly moves for a while does not slide.

    Knees follow by half. For motions whose camera stands still; a camera that follows moves
    standing feet as well.

    Raises:
        InputError: the maps cannot be painted anew.
    """
    _require_points(motion, "foot lock")
    joints = motion.joints.copy()
    size = float(np.median(body_height(joints)))
    for side in _SIDES:
        members = [INDEX[f"{side}_{name}"] for name in _FOOT]
        path = joints[:, members, :2].mean(axis=1)
        offset = np.zeros_like(path)
        for start, stop in _stances(path, size, motion.fps):
            offset[start:stop] = np.median(path[start:stop], axis=0) - path[start:stop]
        offset = _released(offset, max(1, round(_RELEASE * motion.fps)))
        joints[:, members, :2] += offset[:, None]
        joints[:, INDEX[f"{side}_knee"], :2] += offset / 2
    return _painted(motion, joints)


def _stances(path: Float[np.ndarray, "t 2"], size: float, fps: float) -> list[tuple[int, int]]:
    """Runs of frames in which a foot stands."""
    if len(path) < 3:
        return []
    speed = np.linalg.norm(np.gradient(path, axis=0), axis=1) * fps / max(size, 1e-6)
    still: Bool[np.ndarray, " t"] = speed < _STILL
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(np.int8), [0]])))
    least = max(3, round(_SHORTEST_STANCE * fps))
    runs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [(start, stop) for start, stop in runs if stop - start >= least]


def _released(offset: Float[np.ndarray, "t 2"], frames: int) -> Float[np.ndarray, "t 2"]:
    """Offsets that fall to 0 over some frames around each stance instead of at once."""
    held = np.any(offset != 0, axis=1)
    if not held.any():
        return offset
    times, known = np.arange(len(offset)), np.flatnonzero(held)
    nearest = known[np.abs(times[:, None] - known[None, :]).argmin(axis=1)]
    share = np.clip(1 - np.abs(times - nearest) / frames, 0, 1)[:, None]
    return offset[nearest] * share


def _proportions(joints: Float[np.ndarray, "t 33 4"]) -> dict[str, float]:
    """Lengths in body heights, medians over time, left and right averaged."""
    height = np.maximum(body_height(joints), 1e-6)

    def length(a: str, b: str) -> float:
        return float(
            np.median(np.linalg.norm(point(joints, a) - point(joints, b), axis=-1) / height)
        )

    def both(a: str, b: str) -> float:
        return sum(length(f"{side}_{a}", f"{side}_{b}") for side in _SIDES) / 2

    return {
        "hips": length("left_hip", "right_hip"),
        "shoulders": length("left_shoulder", "right_shoulder"),
        "trunk": length("middle_hip", "middle_shoulder"),
        "neck": length("middle_shoulder", "middle_ear"),
        "upper_arm": both("shoulder", "elbow"),
        "forearm": both("elbow", "wrist"),
        "thigh": both("hip", "knee"),
        "shin": both("knee", "ankle"),
    }


def _blend(
    old: Float[np.ndarray, "n k 4"], new: Float[np.ndarray, "n k 4"]
) -> Float[np.ndarray, "n k 4"]:
    """Goes smoothly from one to the other; points left out of either stay left out."""
    share = (np.arange(len(old)) + 1) / (len(old) + 1)
    share = (share**2 * (3 - 2 * share)).astype(np.float32)[:, None, None]
    mixed = old * (1 - share) + new * share
    absent = (old[..., 3] <= ABSENT) | (new[..., 3] <= ABSENT)
    mixed[..., 3] = np.where(absent, ABSENT, mixed[..., 3])
    return mixed


def _flags(motion: Motion) -> np.ndarray:
    return motion.flags if len(motion.flags) else np.zeros(motion.num_frames, np.uint8)


def _painted(motion: Motion, joints: Float[np.ndarray, "t 33 4"]) -> Motion:
    joints = joints.astype(np.float32)
    return replace(motion, joints=joints, maps=paint(joints, motion.height, motion.width))


def _require_points(motion: Motion, what: str) -> None:
    if not (motion.painted and motion.has_points):
        raise InputError(
            f"{what}: needs a motion painted from body points, got one by {motion.estimator!r} "
            "whose maps cannot be painted anew"
        )
