"""Previews of poses and of the people in a frame."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.errors import InputError
from dreampose.poses.landmarks import ABSENT, BONES
from dreampose.poses.motion import Motion
from dreampose.poses.placement import Placement
from dreampose.poses.quality import FLAGS, has_flag

_LEFT, _RIGHT, _MIDDLE = (255, 140, 0), (0, 120, 255), (255, 255, 255)
"""Colours of bones: the body's left, right, and what joins both."""
_FLAGGED = (255, 40, 40)
_SMALLEST = 480
"""Least height of a preview in pixels."""
_MARGIN = 0.15
"""Space around the body in a zoomed preview, as a share of the body's extent."""


def draw_preview(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], motion: Motion, *, zoom: bool = False
) -> UInt8[np.ndarray, "t H2 W2 3"]:
    """Draws pose maps and bones over a video; see `iterate_preview`.

    Raises:
        InputError: frames and motion differ in number.
    """
    return np.stack(list(iterate_preview(frames, motion, zoom=zoom)))


def iterate_preview(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]], motion: Motion, *, zoom: bool = False
) -> Iterator[UInt8[np.ndarray, "H2 W2 3"]]:
    """Draws pose maps and bones over a video, frame by frame.

    Args:
        frames: that the motion was extracted from, any size.
        motion: as `extract` gives it, not yet aligned.
        zoom: show the part of the maps in which the body is; names of flags are written in.

    Yields:
        Frames of the motion's shape, enlarged to at least 480 pixels high.

    Raises:
        InputError: frames and motion differ in number.
    """
    factor = max(1, -(-_SMALLEST // motion.height))
    size = (motion.height * factor, motion.width * factor)
    view = _body_view(motion, size) if zoom else _view((0, 0, motion.width, motion.height), size)
    number = 0
    for number, frame in enumerate(frames, start=1):
        if number > motion.num_frames:
            break
        index = number - 1
        picture = _look(frame, motion, view, size)
        maps = view.warp(motion.maps[index][None], size)[0]
        picture = _draw(picture, maps, view.move(motion.joints[index]), motion.has_points, factor)
        if zoom and len(motion.flags):
            names = [name for name in FLAGS if has_flag(motion.flags[index : index + 1], name)[0]]
            text = f"{index} {' '.join(names)}"
            cv2.putText(picture, text, (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.55,
                        _FLAGGED if names else _MIDDLE, 2, cv2.LINE_AA)  # fmt: skip
        yield picture
    if number != motion.num_frames:
        raise InputError(
            f"frames must be as many as the motion's {motion.num_frames}, got {number}"
        )


def draw_people(
    picture: UInt8[np.ndarray, "H W 3"], places: Iterable[tuple[float, float]]
) -> UInt8[np.ndarray, "H W 3"]:
    """A picture with a number, from 1 on, at each place."""
    drawn = np.ascontiguousarray(picture).copy()
    scale = max(0.6, picture.shape[0] / 600)
    for number, (x, y) in enumerate(places, start=1):
        place, text = (round(x), round(y)), str(number)
        cv2.circle(drawn, place, round(16 * scale), (0, 0, 0), -1, cv2.LINE_AA)
        cv2.circle(drawn, place, round(16 * scale), _MIDDLE, max(1, round(2 * scale)), cv2.LINE_AA)
        (wide, high), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale, 2)
        corner = (place[0] - wide // 2, place[1] + high // 2)
        cv2.putText(drawn, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.7 * scale, _MIDDLE,
                    max(1, round(2 * scale)), cv2.LINE_AA)  # fmt: skip
    return drawn


def _view(area: tuple[float, float, float, float], size: tuple[int, int]) -> Placement:
    """Brings an area (left, top, right, bottom) of the maps to a picture of a size."""
    left, top, right, bottom = area
    scale_x, scale_y = size[1] / (right - left), size[0] / (bottom - top)
    return Placement(scale_x=scale_x, scale_y=scale_y, left=-left * scale_x, top=-top * scale_y)


def _body_view(motion: Motion, size: tuple[int, int]) -> Placement:
    """The area in which the body is over the whole motion, with a margin, of the maps' shape."""
    seen = motion.joints[motion.joints[..., 3] > ABSENT][:, :2]
    low, high = np.clip(seen.min(axis=0), 0, None), seen.max(axis=0)
    high = np.minimum(high, [motion.width, motion.height])
    middle, span = (low + high) / 2, np.maximum(high - low, 1) * (1 + 2 * _MARGIN)
    share = min(1.0, max(span[0] / motion.width, span[1] / motion.height))
    half = np.array([motion.width, motion.height]) * share / 2
    middle = np.clip(middle, half, [motion.width, motion.height] - half)
    (left, top), (right, bottom) = middle - half, middle + half
    return _view((float(left), float(top), float(right), float(bottom)), size)


def _look(
    frame: UInt8[np.ndarray, "H W 3"], motion: Motion, view: Placement, size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """What a view shows of a frame that lies letterboxed in the maps."""
    inside = Placement.fit(frame.shape[:2], (motion.height, motion.width))
    scale_x, scale_y = inside.scale_x * view.scale_x, inside.scale_y * view.scale_y
    matrix = np.array([
        [scale_x, 0, inside.left * view.scale_x + view.left + (scale_x - 1) / 2],
        [0, scale_y, inside.top * view.scale_y + view.top + (scale_y - 1) / 2],
    ])  # fmt: skip
    edges = np.concatenate([frame[0], frame[-1], frame[:, 0], frame[:, -1]])
    border = [float(level) for level in edges.mean(axis=0)]
    if scale_x < 0.75:
        # Averaged first: a warp takes single pixels.
        small = (max(1, round(frame.shape[1] * scale_x)), max(1, round(frame.shape[0] * scale_y)))
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        matrix = np.array([
            [1, 0, inside.left * view.scale_x + view.left],
            [0, 1, inside.top * view.scale_y + view.top],
        ])  # fmt: skip
    return cv2.warpAffine(
        frame, matrix, (size[1], size[0]), borderMode=cv2.BORDER_CONSTANT, borderValue=border
    )


def _draw(
    picture: UInt8[np.ndarray, "H W 3"],
    maps: Float[np.ndarray, "u H W"],
    joints: Float[np.ndarray, "k 4"],
    has_bones: bool,
    factor: int,
) -> UInt8[np.ndarray, "H W 3"]:
    u, v = maps[-2:]
    hues = np.stack([u * 150, np.full_like(u, 220), 60 + v * 195], axis=-1).astype(np.uint8)
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)
    mixed = np.where((u > 0)[..., None], picture * 0.45 + colours * 0.55, picture)
    picture = np.ascontiguousarray(mixed.astype(np.uint8))
    places = np.round(joints[:, :2]).astype(int).tolist()
    width = max(1, factor // 2)
    if has_bones:
        for a, b in BONES:
            if min(joints[a, 3], joints[b, 3]) <= ABSENT:
                continue
            # In the network's order the left of a pair has the odd index.
            colour = _MIDDLE if (a - b) % 2 else (_LEFT if a % 2 else _RIGHT)
            cv2.line(picture, places[a], places[b], colour, width, cv2.LINE_AA)
    for place, joint in zip(places, joints, strict=True):
        if joint[3] > 0:
            cv2.circle(picture, place, width, (255, 255, 255), -1, cv2.LINE_AA)
    return picture
