"""Motion extraction from a video: estimation, repair, gap filling."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import overload
from warnings import warn

import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import HiddenLimbsWarning, InputError
from dreampose.io import video
from dreampose.poses import quality, sides
from dreampose.poses.estimators import Frames, PoseEstimator, Progress, Track
from dreampose.poses.landmarks import ABSENT, INDEX, NAMES, body_height, point, steady
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.types import Clip

MAX_GAP_SECONDS = 0.4
"""Longest stretch without a pose that is filled in."""

_SPIKE = 0.15
"""A point this many body heights away from both neighbours in time, while they agree, is wrong."""
_NARROW = 0.55
"""Shoulders and hips narrower than this share of the track's own width are misread."""
_AROUND_SECONDS = 0.1
"""Time to either side with which the direction of the shoulders and hips is compared."""
_MISREAD = 0.12
"""Mean deviation of the points from the middle of their neighbours in time, in body heights, …"""
_MISREAD_ACCELERATION = 10.0
"""… plus this times the square of the time between them in seconds, that shows a misreading."""

_HIDDEN = 0.3
"""Visibility of the better seen side below which both legs, or both arms, are hidden, …"""
_MOSTLY_HIDDEN = 0.5
"""… and below which they are where it is the median over the longest gap that is filled."""
_LIMBS = {
    "legs": ("knee", "ankle", "heel", "foot"),
    "arms": ("elbow", "wrist", "pinky", "index", "thumb"),
}
"""Points that are interpolated or left out where a pair of limbs is hidden."""
_JUDGED = {"legs": ("knee", "ankle"), "arms": ("elbow", "wrist")}
"""Points whose visibility decides that."""
_ROOTS = {"legs": "hip", "arms": "shoulder"}
_MAIN = tuple(
    INDEX[f"{side}_{name}"]
    for side in ("left", "right")
    for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
)
_MARGIN = 0.02
"""Points are outside a picture by more than this share of a body height."""


def extract(
    clip: str | Path | Frames,
    estimator: PoseEstimator,
    *,
    height: int = 160,
    width: int = 128,
    frames: tuple[int, int] | None = None,
    max_gap: float = MAX_GAP_SECONDS,
    progress: Progress | None = None,
) -> Motion:
    """Estimates the motion of the person in a video.

    Frames without a pose are filled and counted in `num_filled`, their confidence is 0: joints
    are interpolated linearly between the neighbours in time (exact maps take the nearest frame),
    and before the first and after the last pose the nearest one is repeated. What was filled,
    put right or left out is flagged frame by frame (`Motion.flags`).

    Args:
        clip: a video file, a `VideoReader`, or a decoded clip.
        estimator: what reads the poses.
        height: of the maps in pixels; the frames are placed in them as `video.fit` does.
        width: of the maps in pixels.
        frames: first frame and the one after the last; all of them where None.
        max_gap: longest stretch that is filled, in seconds, at least one frame.
        progress: called after every frame.

    Raises:
        InputError: the video cannot be read; no person is found; a gap is too long; the
            video cuts to another shot.
    """
    if isinstance(clip, str | Path):
        clip = video.VideoReader(clip)
    if frames is not None:
        clip = cut(clip, *frames)
    track = estimator(clip, height=height, width=width, progress=progress)
    return complete(
        track,
        height=height,
        width=width,
        fps=clip.fps,
        source=clip.source,
        estimator=estimator.name,
        first_frame=clip.first_frame,
        max_gap=max_gap,
    )


def complete(
    track: Track,
    *,
    height: int,
    width: int,
    fps: float,
    source: str,
    estimator: str,
    first_frame: int = 0,
    max_gap: float = MAX_GAP_SECONDS,
) -> Motion:
    """The motion of a track: sides put right, misreadings out, gaps filled; see `extract`.

    Args:
        track: of one person.
        height: of the maps in pixels.
        width: of the maps in pixels.
        fps: frames per second.
        source: where the track comes from, for messages.
        estimator: name of what made the track.
        first_frame: number of its first frame in the source, for messages.
        max_gap: longest stretch that is filled, in seconds, at least one frame.

    Raises:
        InputError: no frame shows a person; a gap is too long; the video cuts to another shot.

    Warns:
        HiddenLimbsWarning: legs or arms are hidden for longer than `max_gap`.
    """
    name = source or "the clip"
    points = track.maps is None and track.joint_names == NAMES
    flags: dict[str, Bool[np.ndarray, " t"]] = {}
    if points:
        decided = sides.mend(track.joints, track.found, fps, track.colours)
        exchanged: np.ndarray = np.any(decided.exchanged, axis=1)
        flags |= {"exchanged": exchanged, "unsure": decided.unsure}
        track = _without_misreadings(replace(track, joints=decided.joints), fps)
    if not track.found.any():
        raise InputError(
            f"video must show a person, got nobody in any of the {len(track.found)} frames "
            f"of {name}"
        )
    limit = max(1, round(max_gap * fps))
    _check_gaps(track.found, track.cuts, fps, name, first_frame, limit)
    joints, nearest = _fill(track.joints, track.found)
    if points:
        joints, flags["hidden"] = _without_hidden_limbs(joints, track, limit, first_frame, name)
        joints, flags["jump"] = without_spikes(joints)
        flags["outside"] = outside(joints, height, width)
    flags["filled"] = ~track.found
    maps = paint(joints, height, width) if track.maps is None else track.maps[nearest]
    return Motion(
        maps=maps,
        joints=joints,
        confidence=np.where(track.found, track.confidence, 0).astype(np.float32),
        fps=fps,
        source=Path(source).name,
        estimator=estimator,
        num_filled=int((~track.found).sum()),
        joint_names=track.joint_names,
        painted=track.maps is None,
        places=None if track.places is None else track.places[nearest],
        flags=quality.as_bits(flags, len(joints)),
    )


@overload
def cut(clip: Clip, start: int, stop: int) -> Clip: ...


@overload
def cut(clip: Frames, start: int, stop: int) -> Frames: ...


def cut(clip: Frames, start: int, stop: int) -> Frames:
    """The frames `start` to `stop - 1` of a clip.

    Raises:
        InputError: the range is empty or reaches outside the clip.
    """
    if not 0 <= start < stop <= len(clip):
        raise InputError(
            f"frames must be a range A:B with 0 <= A < B <= {len(clip)}, got {start}:{stop}"
        )
    return clip.between(start, stop)


def outside(joints: Float[np.ndarray, "t 33 4"], height: int, width: int) -> Bool[np.ndarray, " t"]:
    """Frames in which a shoulder, hip or limb that is painted lies outside the maps."""
    margin = _MARGIN * body_height(joints)[:, None]
    x, y = joints[:, _MAIN, 0], joints[:, _MAIN, 1]
    out = (x < -margin) | (x > width + margin) | (y < -margin) | (y > height + margin)
    frames: np.ndarray = np.any(out & (joints[:, _MAIN, 3] > ABSENT), axis=1)
    return frames


def _check_gaps(
    found: Bool[np.ndarray, " t"],
    cuts: tuple[int, ...],
    fps: float,
    source: str,
    first_frame: int,
    limit: int,
) -> None:
    """Refuses stretches of more than `limit` frames without a pose, and cuts."""
    seen = np.concatenate([[-1], np.flatnonzero(found), [len(found)]])
    gaps = [
        (before + 1, after)
        for before, after in pairwise(seen.tolist())
        if after - before - 1 > limit
    ]
    # A short shot in between is filled like any gap.
    shots = [cut for cut in cuts if not _is_bridged(cut, found, cuts)]
    if not gaps and not shots:
        return
    good = np.zeros(len(found), bool)
    inside = np.flatnonzero(found)
    good[inside[0] : inside[-1] + 1] = True
    for start, stop in gaps:
        good[start:stop] = False
    edges = [0, *shots, len(found)]
    stretches = [
        (start + first_frame + run[0], start + first_frame + run[1])
        for start, stop in pairwise(edges)
        if (run := quality.longest(good[start:stop])) is not None
    ]
    best = max(stretches, key=lambda run: run[1] - run[0])
    hint = f"the longest usable stretch is frames {best[0]}:{best[1]}"
    if gaps:
        texts = [
            f"{stop - start} frames without a pose, {start + first_frame} to "
            f"{stop - 1 + first_frame} ({(start + first_frame) / fps:.2f} s to "
            f"{(stop + first_frame) / fps:.2f} s)"
            for start, stop in gaps
        ]
        cause = "".join(f"; it cuts to another shot at frame {cut + first_frame}" for cut in shots)
        raise InputError(
            f"video must show the person throughout: gaps of up to {limit} frames are filled, "
            f"got {', '.join(texts)}, in {source}{cause}; {hint}"
        )
    raise InputError(
        f"video must be one shot, got a cut at frame "
        f"{', '.join(str(cut + first_frame) for cut in shots)} of {source}; {hint}"
    )


def _is_bridged(cut: int, found: Bool[np.ndarray, " t"], cuts: tuple[int, ...]) -> bool:
    """Whether a cut only leads into or out of a few frames without the person."""
    index = cuts.index(cut)
    following = cuts[index + 1] if index + 1 < len(cuts) else None
    previous = cuts[index - 1] if index else None
    into = following is not None and not found[cut:following].any()
    return into or (previous is not None and not found[previous:cut].any())


def _fill(
    joints: Float[np.ndarray, "t k 4"], found: Bool[np.ndarray, " t"]
) -> tuple[Float[np.ndarray, "t k 4"], np.ndarray]:
    """Joints interpolated over time where not found, and the nearest frame found of each."""
    times, seen = np.arange(len(found)), np.flatnonzero(found)
    after = np.clip(np.searchsorted(seen, times), 0, len(seen) - 1)
    before = np.maximum(after - 1, 0)
    high, low = seen[after], seen[before]
    low = np.where(high <= times, high, low)
    nearest = np.where(np.abs(times - low) <= np.abs(high - times), low, high)
    share = np.clip((times - low) / np.maximum(high - low, 1), 0, 1)[:, None, None]
    filled = joints[low] * (1 - share) + joints[high] * share
    return filled.astype(np.float32), nearest


def _without_misreadings(track: Track, fps: float) -> Track:
    """Marks frames that are misread as not found.

    For a frame or a few the network may turn a person round, or answer halfway, with the left on
    top of the right: the line from right to left then reverses or collapses against that of the
    frames around. Or it may read another pose altogether: the points are then far from the middle
    of the frames before and after. Interpolation over such frames is right.
    """
    if track.found.sum() < 3:
        return track
    left, right = (
        point(track.joints, f"{side}_shoulder") + point(track.joints, f"{side}_hip")
        for side in ("left", "right")
    )
    across = left - right
    across = across[track.found] / np.maximum(body_height(track.joints[track.found]), 1e-6)[:, None]
    widths = np.linalg.norm(across, axis=-1)
    radius = min(max(3, round(_AROUND_SECONDS * fps)), len(across) - 1)
    padded = np.pad(across, ((radius, radius), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0)
    agrees = (across * np.median(around, axis=-1)).sum(axis=-1) > 0
    found = track.found.copy()
    found[found] = agrees & (widths >= _NARROW * np.median(widths))
    return replace(track, found=_without_outliers(track.joints, found, fps))


def _without_outliers(
    joints: Float[np.ndarray, "t 33 4"], found: Bool[np.ndarray, " t"], fps: float
) -> Bool[np.ndarray, " t"]:
    """Takes out, worst first, frames whose points are far from the middle of their neighbours."""
    kept = np.flatnonzero(found).tolist()
    size = float(np.median(body_height(joints[found]))) if len(kept) else 1.0
    points = joints[:, _MAIN, :2] / max(size, 1e-6)
    for _ in range(len(kept) // 5):
        if len(kept) < 3:
            break
        times = np.array(kept)
        before, now, after = times[:-2], times[1:-1], times[2:]
        share = ((now - before) / (after - before))[:, None, None]
        middle = points[before] * (1 - share) + points[after] * share
        error = np.linalg.norm(points[now] - middle, axis=-1).mean(axis=-1)
        span = np.minimum(after - now, now - before) / fps
        excess = error / (_MISREAD + _MISREAD_ACCELERATION * span**2)
        worst = int(excess.argmax())
        if excess[worst] <= 1:
            break
        del kept[worst + 1]
    cleaned = np.zeros_like(found)
    cleaned[kept] = True
    return cleaned


def _without_hidden_limbs(
    joints: Float[np.ndarray, "t 33 4"],
    track: Track,
    limit: int,
    first_frame: int,
    source: str,
) -> tuple[Float[np.ndarray, "t 33 4"], Bool[np.ndarray, " t"]]:
    """Interpolates legs or arms that are hidden for up to `limit` frames; leaves out longer ones.

    Both legs, or both arms, must be hidden: one limb behind the own body is what a walk seen from
    the side looks like, and is painted behind the body.

    Returns:
        The joints, visibility `ABSENT` where left out, and the frames in which something is.
    """
    joints = joints.copy()
    left_out = np.zeros(len(joints), bool)
    for name, places in _LIMBS.items():
        hidden = _is_hidden(joints, _JUDGED[name], track.picture, limit)
        members = [INDEX[f"{s}_{place}"] for s in ("left", "right") for place in places]
        missing = np.zeros(len(joints), bool)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden.astype(np.int8), [0]])))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if stop - start <= limit and (start > 0 or stop < len(joints)):
                _bridge(joints, members, _ROOTS[name], start, stop)
            else:
                missing[start:stop] = True
        joints[:, members, 3] = np.where(missing[:, None], ABSENT, joints[:, members, 3])
        left_out |= missing
        if missing.any():
            shown = quality.as_ranges((np.flatnonzero(missing) + first_frame).tolist())
            warn(
                f"the {name} are hidden or out of the picture in {missing.sum()} of "
                f"{len(joints)} frames of {source} ({shown}); they are left out of the pose maps",
                HiddenLimbsWarning,
                stacklevel=4,
            )
    return joints, left_out


def _is_hidden(
    joints: Float[np.ndarray, "t 33 4"],
    places: tuple[str, ...],
    picture: tuple[float, float, float, float] | None,
    span: int,
) -> Bool[np.ndarray, " t"]:
    """Frames that show neither of a pair of limbs, by visibility and the picture's edges."""
    margin = _MARGIN * body_height(joints)
    seen = np.zeros((len(joints), 2, len(places)))
    for side, name in enumerate(("left", "right")):
        for index, place in enumerate(places):
            x, y, _, visibility = joints[:, INDEX[f"{name}_{place}"]].T
            out = np.zeros(len(joints), bool)
            if picture is not None:
                left, top, right, bottom = picture
                out = (x < left - margin) | (x > right + margin)
                out |= (y < top - margin) | (y > bottom + margin)
            seen[:, side, index] = np.where(out, 0, np.clip(visibility, 0, 1))
    better = seen.max(axis=1).mean(axis=1)
    usual = steady(better, min(span // 2, len(joints) - 1)) if len(joints) > 2 else better
    return (better < _HIDDEN) | (usual < _MOSTLY_HIDDEN)


def _bridge(
    joints: Float[np.ndarray, "t 33 4"], members: list[int], root: str, start: int, stop: int
) -> None:
    """Interpolates points over frames, in place, relative to the middle of their roots."""
    base = point(joints, f"middle_{root}")
    before, after = max(start - 1, 0), min(stop, len(joints) - 1)
    before, after = (after if start == 0 else before), (before if stop == len(joints) else after)
    share = (np.arange(start, stop) - before) / max(after - before, 1)
    share = np.clip(share, 0, 1)[:, None, None]
    low = joints[before, members, :3] - base[before]
    high = joints[after, members, :3] - base[after]
    joints[start:stop, members, :3] = base[start:stop, None] + low * (1 - share) + high * share


def without_spikes(
    joints: Float[np.ndarray, "t k 4"],
) -> tuple[Float[np.ndarray, "t k 4"], Bool[np.ndarray, " t"]]:
    """Replaces points that jump away for one frame by the middle of their neighbours in time.

    Returns:
        The joints, and the frames in which a point was replaced.
    """
    changed = np.zeros(len(joints), bool)
    if len(joints) < 3:
        return joints, changed
    limit = (_SPIKE * body_height(joints)[1:-1])[:, None]
    before, now, after = joints[:-2], joints[1:-1], joints[2:]

    def distance(
        a: Float[np.ndarray, "t k 4"], b: Float[np.ndarray, "t k 4"]
    ) -> Float[np.ndarray, "t k"]:
        return np.linalg.norm(a[..., :2] - b[..., :2], axis=-1)

    wrong = (
        (distance(now, before) > limit)
        & (distance(now, after) > limit)
        & (distance(before, after) < limit)
        & (now[..., 3] > ABSENT)
    )
    cleaned = joints.copy()
    cleaned[1:-1] = np.where(wrong[..., None], (before + after) / 2, now)
    changed[1:-1] = wrong.any(axis=1)
    return cleaned, changed
