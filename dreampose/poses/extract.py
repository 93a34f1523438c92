"""From a video to a motion: estimate, drop jumps, fill short gaps. Knows no estimator by name."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from dreampose.errors import InputError
from dreampose.io import video
from dreampose.poses.estimators import PoseEstimator, Progress, Track
from dreampose.poses.landmarks import body_height, point
from dreampose.poses.motion import Motion
from dreampose.poses.paint import paint
from dreampose.types import Clip

MAX_GAP_SECONDS = 0.4
"""Longest stretch without a pose that is filled in."""

_SPIKE = 0.15
"""A point this many body heights away from both neighbours in time, while they agree, is wrong."""
_NARROW = 0.55
"""Shoulders and hips narrower than this share of the track's own width are misread."""
_AROUND = 3
"""Frames to either side with which the direction of the shoulders and hips is compared."""


def extract(
    clip: str | Path | Clip,
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
    and before the first and after the last pose the nearest one is repeated.

    Args:
        clip: a video file, or a decoded clip.
        estimator: what reads the poses.
        height: of the maps in pixels; the frames are placed in them as `video.fit` does.
        width: of the maps in pixels.
        frames: first frame and the one after the last; all of them where None.
        max_gap: longest stretch that is filled, in seconds, at least one frame.
        progress: called after every frame.

    Raises:
        InputError: the video cannot be read; nobody is in the picture; a gap is too long.
    """
    if not isinstance(clip, Clip):
        clip = video.read(clip)
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
    """The motion of a track: misreadings out, gaps filled, maps painted; see `extract`.

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
        InputError: nobody is in the track; a gap is too long.
    """
    if track.maps is None:
        track = _without_misreadings(track)
    if not track.found.any():
        raise InputError(
            f"video must show a person, got nobody in any of the {len(track.found)} frames "
            f"of {source or 'the clip'}"
        )
    _check_gaps(track.found, fps, source, first_frame, max(1, round(max_gap * fps)))
    joints, nearest = _fill(track.joints, track.found)
    if track.maps is None:
        joints = without_spikes(joints)
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
    )


def cut(clip: Clip, start: int, stop: int) -> Clip:
    """The frames `start` to `stop - 1` of a clip.

    Raises:
        InputError: the range is empty or reaches outside the clip.
    """
    if not 0 <= start < stop <= len(clip.frames):
        raise InputError(
            f"frames must be a range A:B with 0 <= A < B <= {len(clip.frames)}, got {start}:{stop}"
        )
    return replace(clip, frames=clip.frames[start:stop], first_frame=clip.first_frame + start)


def _check_gaps(
    found: Bool[np.ndarray, " t"], fps: float, source: str, first_frame: int, limit: int
) -> None:
    """Refuses stretches of more than `limit` frames without a pose."""
    seen = np.concatenate([[-1], np.flatnonzero(found), [len(found)]])
    for before, after in pairwise(seen.tolist()):
        num_lost = after - before - 1
        if num_lost > limit:
            first, last = before + 1 + first_frame, after - 1 + first_frame
            raise InputError(
                f"video must show the person throughout: gaps of up to {limit} frames are filled, "
                f"got {num_lost} frames without a pose, {first} to {last} "
                f"({first / fps:.2f} s to {(last + 1) / fps:.2f} s), "
                f"in {source or 'the clip'}; leave them out by choosing a range of frames"
            )


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


def _without_misreadings(track: Track) -> Track:
    """Marks frames in which front and back are taken for one another.

    For a frame or a few the network may turn a person round, or answer halfway, with the left on
    top of the right. The line from right to left then reverses or collapses against that of the
    frames around, which are right; interpolation over them is too.
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
    radius = min(_AROUND, len(across) - 1)
    padded = np.pad(across, ((radius, radius), (0, 0)), mode="edge")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * radius + 1, axis=0)
    agrees = (across * np.median(around, axis=-1)).sum(axis=-1) > 0
    found = track.found.copy()
    found[found] = agrees & (widths >= _NARROW * np.median(widths))
    return replace(track, found=found)


def without_spikes(joints: Float[np.ndarray, "t k 4"]) -> Float[np.ndarray, "t k 4"]:
    """Replaces points that jump away for one frame by the middle of their neighbours in time."""
    if len(joints) < 3:
        return joints
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
    )
    cleaned = joints.copy()
    cleaned[1:-1] = np.where(wrong[..., None], (before + after) / 2, now)
    return cleaned
