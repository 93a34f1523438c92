"""Detection and repair of swapped left and right limbs.

Networks that read single frames exchange the left and right of a body for a few frames or for
seconds: all of it (front taken for back), or the legs or arms alone. The labels of a whole track
are decided together, by dynamic programming over time (Viterbi): which limb groups are exchanged
in each frame, so that positions and velocities are continuous, shoulders, hips and head face one
way, the body's two sides keep their colours, and as few frames as possible are changed.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from dreampose.poses.landmarks import INDEX, NAMES, body_height, point

GROUPS = ("head", "arms", "legs")
"""Limb groups whose sides may be exchanged independently."""

_POINTS = {
    "head": ("ear",),
    "arms": ("shoulder", "elbow", "wrist"),
    "legs": ("hip", "knee", "ankle", "heel", "foot"),
}
"""Points by whose movement a group is judged."""
_ROOTS = {"head": "ear", "arms": "shoulder", "legs": "hip"}
_HEAD = [i for i, n in enumerate(NAMES) if any(p in n for p in ("eye", "ear", "mouth"))]
_ARMS = [
    i for i, n in enumerate(NAMES)
    if any(p in n for p in ("shoulder", "elbow", "wrist", "pinky", "index", "thumb"))
]  # fmt: skip
_LEGS = [
    i for i, n in enumerate(NAMES) if any(p in n for p in ("hip", "knee", "ankle", "heel", "foot"))
]
_MEMBERS = {"head": _HEAD, "arms": _ARMS, "legs": _LEGS}

_STATES = np.array(list(itertools.product((0, 1), repeat=len(GROUPS))))
"""Exchanged (1) or not of each group, in each of the eight states."""

_NOISE = 0.02
"""Reading error of a point in body heights."""
_SPEED = 1.0
"""Speed of points that costs nothing unusual, in body heights per second."""
_ACCELERATION = 20.0
"""The same for the acceleration, in body heights per second squared."""
_CAP = 4.0
"""Largest cost of one point, so that one misreading does not decide."""
_POSITION_WEIGHT = 0.5
_GROUP_WEIGHTS = {"head": 0.4, "arms": 1.0, "legs": 1.0}
_CHANGE = 0.5
"""Cost of an exchange that begins or ends, for each group."""
_APART = 0.25
"""Cost of groups that differ, for each frame: mostly the whole body is exchanged."""
_OPPOSED = 1.5
"""Cost of shoulders and hips, or head and shoulders, that face opposite ways."""
_PRIOR = 0.1
"""Cost per second of an exchanged group: the network is mostly right."""
_ROUGH = 3.0
"""Cost of movement above which the path may be wrong from here on."""
_SHORTEST_SEGMENT = 0.1
"""Such places nearer than this, in seconds, are one."""
_FEWEST_FRAMES = 3
"""Frames of the shortest segment between such places."""
_GAP_SECONDS = 0.1
"""A gap longer than this ends a segment."""
_FURTHEST = 0.06
"""Longest time in seconds over which positions are extrapolated by their velocity."""
_WINDOW_SECONDS = 0.12
"""Time over which each side of such a place is extrapolated."""
_BRIDGE_NOISE = 0.04
"""Error of the extrapolation in body heights."""
_BRIDGE_WEIGHT = 2.0
_FEET = 0.03
"""Toes lower than heels by this, in body heights, face the camera; higher by this, away from it."""
_FEET_COST = 0.3
"""Cost of legs that face the other way than both feet point, for each frame."""
_COLOUR_WEIGHT = 0.8
_COLOUR_NOISE = 12.0
"""Difference in colour of left and right, in Lab steps, above the effect of shade."""
_RESET_SECONDS = 0.4
"""Positions across a longer gap get a quarter of the weight."""
_UNSURE = 1.0
"""Difference in cost below which a stretch could as well be labelled the other way round."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Result of `mend`.

    Attributes:
        joints: with left and right as decided.
        exchanged: frames in which the sides of any group were exchanged, by group.
        unsure: frames whose sides could as well be the other way round.
    """

    joints: Float[np.ndarray, "t 33 4"]
    exchanged: Bool[np.ndarray, "t 3"]
    unsure: Bool[np.ndarray, " t"]


def mend(
    joints: Float[np.ndarray, "t 33 4"],
    found: Bool[np.ndarray, " t"],
    fps: float,
    colours: Float[np.ndarray, "t 3 2 3"] | None = None,
) -> Sides:
    """Finds frames in which left and right are exchanged, and puts them right.

    Args:
        joints: in pixels, x, y, depth, visibility.
        found: frames that show the person; the others are left alone.
        fps: frames per second.
        colours: mean Lab colour of each group's left and right, NaN where unknown.
    """
    frames = np.flatnonzero(found)
    exchanged = np.zeros((len(joints), len(GROUPS)), bool)
    unsure = np.zeros(len(joints), bool)
    if len(frames) < 3:
        return Sides(joints=joints, exchanged=exchanged, unsure=unsure)
    size = float(np.median(body_height(joints[frames])))
    times = frames / fps
    track = joints[frames].astype(np.float64)
    unary = _facing_costs(track, size) + _change_costs(times)
    moves = {name: _movement_costs(track, times, size, name) for name in GROUPS}
    path = _viterbi(unary, moves)
    if colours is not None:
        unary = unary + _colour_costs(colours[frames], path)
        path = _viterbi(unary, moves)
    path = _reconnect(track, times, size, unary, moves, path)
    labels = _STATES[path].astype(bool)
    exchanged[frames] = labels
    unsure[frames] = _unsure(unary, moves, path)
    mended = joints.copy()
    mended[frames] = _exchange(track, labels)
    return Sides(joints=mended, exchanged=exchanged, unsure=unsure)


def opposite(name: str) -> str:
    """Name of the same point on the other side."""
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


OPPOSITE = np.array([INDEX[opposite(name)] for name in NAMES])
"""Index of the same point on the other side."""


def _pairs(name: str) -> tuple[list[int], list[int]]:
    left = [INDEX[f"left_{place}"] for place in _POINTS[name]]
    return left, [int(OPPOSITE[index]) for index in left]


def _movement_costs(
    track: Float[np.ndarray, "n 33 4"],
    times: Float[np.ndarray, " n"],
    size: float,
    name: str,
) -> Float[np.ndarray, "n 2 2 2"]:
    """Cost of a group's labels in two frames before and in the frame: (before, last, now)."""
    left, right = _pairs(name)
    # Labelled both ways: n, label, point, xy with the left points first.
    plain = np.concatenate([track[:, left, :2], track[:, right, :2]], axis=1)
    other = np.concatenate([track[:, right, :2], track[:, left, :2]], axis=1)
    both = np.stack([plain, other], axis=1) / size
    visible = np.sqrt(np.clip(track[:, left, 3] * track[:, right, 3], 0.01, 1))
    weights = np.concatenate([visible, visible], axis=1)
    costs = np.zeros((len(track), 2, 2, 2))
    steps = np.diff(times)
    for last, now in itertools.product((0, 1), repeat=2):
        moved = np.linalg.norm(both[1:, now] - both[:-1, last], axis=-1)
        unit = _NOISE + _SPEED * np.minimum(steps, _RESET_SECONDS)
        value = np.minimum(moved / unit[:, None], _CAP)
        pair = np.minimum(weights[1:], weights[:-1])
        mean = (value * pair).mean(axis=1) * _POSITION_WEIGHT
        costs[1:, :, last, now] += np.where(steps > _RESET_SECONDS, 0.25 * mean, mean)[:, None]
        for before in (0, 1):
            ahead = (steps[1:] / steps[:-1])[:, None, None]
            expected = both[1:-1, last] + (both[1:-1, last] - both[:-2, before]) * ahead
            error = np.linalg.norm(both[2:, now] - expected, axis=-1)
            unit = _NOISE + _ACCELERATION * steps[1:] * (steps[1:] + steps[:-1]) / 2
            value = np.minimum(error / unit[:, None], _CAP)
            triple = np.minimum(pair[1:], weights[:-2])
            near = (steps[1:] <= _RESET_SECONDS / 2) & (steps[:-1] <= _RESET_SECONDS / 2)
            costs[2:, before, last, now] += np.where(near, (value * triple).mean(axis=1), 0)
    return costs * _GROUP_WEIGHTS[name]


def _facing_costs(track: Float[np.ndarray, "n 33 4"], size: float) -> Float[np.ndarray, "n 8"]:
    """Cost of each state by the directions of head, shoulders and hips in the picture."""
    across = {
        name: (point(track, f"left_{root}") - point(track, f"right_{root}"))[:, :2] / size
        for name, root in _ROOTS.items()
    }
    costs = np.zeros((len(track), len(_STATES)))
    for one, two in (("head", "arms"), ("arms", "legs")):
        a, b = across[one], across[two]
        # The cosine, reduced where either is seen from the side and gives no direction.
        product = (a * b).sum(axis=1)
        cosine = product / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) + 0.004)
        signs = 1 - 2 * (_STATES[:, GROUPS.index(one)] ^ _STATES[:, GROUPS.index(two)])
        costs += _OPPOSED * np.maximum(0, -cosine[:, None] * signs[None, :])
        costs += _APART * (signs[None, :] < 0)
    pointing = np.stack(
        [(point(track, f"{s}_foot") - point(track, f"{s}_heel"))[:, 1] for s in ("left", "right")]
    )
    front = pointing.min(axis=0) > _FEET * size
    back = pointing.max(axis=0) < -_FEET * size
    wide = np.abs(across["legs"][:, 0]) > 2 * _FEET
    side = np.sign(across["legs"][:, 0])[:, None] * (1 - 2 * _STATES[None, :, GROUPS.index("legs")])
    costs += _FEET_COST * ((front & wide)[:, None] & (side < 0))
    costs += _FEET_COST * ((back & wide)[:, None] & (side > 0))
    return costs


def _change_costs(times: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 8"]:
    """Cost of exchanged groups by the time that they last."""
    length = np.gradient(times)
    return _PRIOR * np.minimum(length, 0.1)[:, None] * _STATES.sum(axis=1)[None, :]


def _reconnect(
    track: Float[np.ndarray, "n 33 4"],
    times: Float[np.ndarray, " n"],
    size: float,
    unary: Float[np.ndarray, "n 8"],
    moves: dict[str, Float[np.ndarray, "n 2 2 2"]],
    path: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Decides again across misread frames, where labels may change at little cost.

    The path is cut where it is not smooth. Each side of a cut is extrapolated from its median
    position and velocity over a tenth of a second, which a misread frame or two do not move; whole
    segments are then exchanged or not, by dynamic programming over the segments.
    """
    labels = _STATES[path]
    frames = np.arange(2, len(path))
    cost = np.zeros(len(path))
    for group, name in enumerate(GROUPS):
        label = labels[:, group]
        cost[2:] += moves[name][frames, label[:-2], label[1:-1], label[2:]]
    segments = _smooth_segments(cost > _ROUGH, times)
    if len(segments) < 2:
        return path
    points = [i for name in ("arms", "legs") for side in _pairs(name) for i in side]
    places = _exchange(track, labels > 0)[..., :2]
    flipped = len(_STATES) - 1 - path
    each = np.arange(len(path))
    own = np.array([
        [unary[each[a:b], choice[a:b]].sum() for choice in (path, flipped)] for a, b in segments
    ])  # fmt: skip
    best, back = own[0].copy(), list[np.ndarray]()
    for number in range(1, len(segments)):
        middle = (times[segments[number - 1][1] - 1] + times[segments[number][0]]) / 2
        before = _extrapolate(places, times, segments[number - 1], middle, last=True)
        after = _extrapolate(places, times, segments[number], middle, last=False)
        apart = [
            float(np.linalg.norm(before[points] - other[points], axis=-1).mean()) / size
            for other in (after, after[OPPOSITE])
        ]
        same, swapped = (min(value / _BRIDGE_NOISE, _CAP) for value in apart)
        link = _BRIDGE_WEIGHT * np.array([[same, swapped], [swapped, same]])
        total = best[:, None] + link + own[number][None, :]
        back.append(total.argmin(axis=0))
        best = total.min(axis=0)
    state = int(best.argmin())
    states = [state]
    for choices in reversed(back):
        state = int(choices[state])
        states.append(state)
    result = path.copy()
    # Frames between two segments go with the nearer one.
    ends = [0, *((a[1] + b[0]) // 2 for a, b in itertools.pairwise(segments)), len(path)]
    for (start, stop), choice in zip(itertools.pairwise(ends), states[::-1], strict=True):
        if choice:
            result[start:stop] = flipped[start:stop]
    return result


def _smooth_segments(
    rough: Bool[np.ndarray, " n"], times: Float[np.ndarray, " n"]
) -> list[tuple[int, int]]:
    """Runs of frames between rough places and gaps; places near each other count as one."""
    rough = rough.copy()
    gaps = np.flatnonzero(np.diff(times) > _GAP_SECONDS) + 1
    marks = np.flatnonzero(rough).tolist()
    for one, two in itertools.pairwise(marks):
        if times[two] - times[one] <= _SHORTEST_SEGMENT:
            rough[one:two] = True
    segments: list[tuple[int, int]] = []
    start = 0
    for index in range(1, len(rough) + 1):
        ends = index == len(rough) or rough[index] or rough[index - 1] or index in gaps
        if not ends:
            continue
        if index - start >= _FEWEST_FRAMES and not rough[start]:
            segments.append((start, index))
        start = index
    return segments


def _extrapolate(
    places: Float[np.ndarray, "n 33 2"],
    times: Float[np.ndarray, " n"],
    segment: tuple[int, int],
    time: float,
    *,
    last: bool,
) -> Float[np.ndarray, "33 2"]:
    """Where the points of a segment are at a time at its end or beginning, by medians."""
    start, stop = segment
    ordered = np.arange(start, stop)[:: -1 if last else 1]
    near = ordered[np.abs(times[ordered] - times[ordered[0]]) <= _WINDOW_SECONDS]
    near = ordered[: max(3, len(near))]
    middle = np.median(places[near], axis=0)
    if len(near) < 4:
        return middle
    near = np.sort(near)
    half = len(near) // 2
    elapsed = (times[near[-half:]] - times[near[:half]])[:, None, None]
    velocity = np.median((places[near[-half:]] - places[near[:half]]) / elapsed, axis=0)
    ahead = time - times[ordered[0]]
    ahead = float(np.clip(ahead, -_FURTHEST, _FURTHEST)) + times[ordered[0]]
    return middle + velocity * (ahead - float(np.median(times[near])))


def _colour_costs(
    colours: Float[np.ndarray, "n 3 2 3"], path: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n 8"]:
    """Cost of each state by how the colours of the sides differ, against the rest of the track."""
    costs = np.zeros((len(colours), len(_STATES)))
    for group in range(len(GROUPS)):
        difference = colours[:, group, 0] - colours[:, group, 1]
        signs = 1.0 - 2.0 * _STATES[path, group]
        if not np.isfinite(difference).all(axis=1).sum() > 5:
            continue
        usual = np.nanmedian(difference * signs[:, None], axis=0)
        strength = float(np.linalg.norm(usual))
        if strength < _COLOUR_NOISE:
            continue
        likeness = np.nan_to_num(difference @ usual) / strength**2
        likeness = np.clip(likeness, -1, 1)
        swapped = 1.0 - 2.0 * _STATES[:, group]
        costs += _COLOUR_WEIGHT * (1 - likeness[:, None] * swapped[None, :]) / 2
    return costs


def _totals(
    moves: dict[str, Float[np.ndarray, "n 2 2 2"]], index: int
) -> Float[np.ndarray, "8 8 8"]:
    """Cost of each state in two frames before and the frame, over all groups."""
    total = np.zeros((len(_STATES),) * 3)
    for group, name in enumerate(GROUPS):
        label = _STATES[:, group]
        total += moves[name][index][np.ix_(label, label, label)]
    return total


def _changes() -> Float[np.ndarray, "8 8"]:
    differs = (_STATES[:, None, :] != _STATES[None, :, :]) * np.array(
        [_GROUP_WEIGHTS[name] for name in GROUPS]
    )
    return _CHANGE * differs.sum(axis=-1)


def _viterbi(
    unary: Float[np.ndarray, "n 8"], moves: dict[str, Float[np.ndarray, "n 2 2 2"]]
) -> Int[np.ndarray, " n"]:
    """The cheapest sequence of states, where a state's cost depends on the two before."""
    changes = _changes()
    num_frames = len(unary)
    first = _totals(moves, 1)[0]
    best = unary[0][:, None] + unary[1][None, :] + first + changes
    back: list[np.ndarray] = []
    for index in range(2, num_frames):
        total = best[:, :, None] + _totals(moves, index) + changes[None] + unary[index][None, None]
        back.append(total.argmin(axis=0))
        best = total.min(axis=0)
    last, now = np.unravel_index(int(best.argmin()), best.shape)
    path = [int(now), int(last)]
    for choices in reversed(back):
        path.append(int(choices[path[-1], path[-2]]))
    return np.array(path[::-1])


def _unsure(
    unary: Float[np.ndarray, "n 8"],
    moves: dict[str, Float[np.ndarray, "n 2 2 2"]],
    path: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
    """Stretches between changes of the labels that the other labels would fit nearly as well."""
    unsure = np.zeros(len(path), bool)
    edges = [0, *(np.flatnonzero(np.diff(path)) + 1).tolist(), len(path)]
    if len(edges) == 2:
        return unsure
    cost = _path_cost(unary, moves, path)
    for start, stop in itertools.pairwise(edges):
        around = path[start - 1] if start else path[stop]
        changed = path.copy()
        changed[start:stop] = around
        if _path_cost(unary, moves, changed) - cost < _UNSURE:
            unsure[start:stop] = True
    return unsure


def _path_cost(
    unary: Float[np.ndarray, "n 8"],
    moves: dict[str, Float[np.ndarray, "n 2 2 2"]],
    path: Int[np.ndarray, " n"],
) -> float:
    labels = _STATES[path]
    cost = float(unary[np.arange(len(path)), path].sum())
    cost += float(_changes()[path[:-1], path[1:]].sum())
    for group, name in enumerate(GROUPS):
        label = labels[:, group]
        cost += float(moves[name][1, 0, label[0], label[1]])
        frames = np.arange(2, len(path))
        cost += float(moves[name][frames, label[:-2], label[1:-1], label[2:]].sum())
    return cost


def _exchange(
    track: Float[np.ndarray, "n 33 4"], labels: Bool[np.ndarray, "n 3"]
) -> Float[np.ndarray, "n 33 4"]:
    """Exchanges the points of the groups so labelled.

    What looks the same with the sides exchanged is the body mirrored in depth, so depth is turned
    about the group's root as well, unless that moves it further from the frame before.
    """
    mended = track.copy()
    for group, name in enumerate(GROUPS):
        members = np.array(_MEMBERS[name])
        rows = np.flatnonzero(labels[:, group])
        if not len(rows):
            continue
        exchanged = track[rows][:, OPPOSITE[members]]
        mended[np.ix_(rows, members)] = exchanged
        if name == "head":
            members = np.append(members, INDEX["nose"])
        root = 0.0 if labels[rows].all() else point(track[rows], f"middle_{_ROOTS[name]}")[:, 2:]
        turned = 2 * root - mended[np.ix_(rows, members)][..., 2]
        mended[rows[:, None], members[None, :], 2] = turned
    return mended
