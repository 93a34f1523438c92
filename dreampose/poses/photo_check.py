"""Fitness of a photo for rendering: one whole, upright, large person on a plain background."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from dreampose.poses.blazepose import LandmarkReader, Landmarks, PersonDetector
from dreampose.poses.landmarks import INDEX, point
from dreampose.poses.tracking import Follower, size_of

_SURE = 0.5
"""Detector score from which a person counts as found."""
_VISIBLE = 0.5
"""Visibility from which a point is seen."""
_OTHER = 0.4
"""Others larger than this share of the person count."""
_LARGE = 0.5
"""Least body height as a share of the photo's."""
_FEWEST_PIXELS = 160
"""Least body height in pixels."""
_UPRIGHT = 0.9
"""Least cosine of the trunk's lean, about 25 degrees."""
_SEEN_FROM_FRONT = 0.75
"""Share of the shoulders' width that is seen from which a person faces the camera."""
_BUSY = 12.0
"""Median absolute deviation of the background's lightness, in 8-bit levels, above which it is no
plain wall."""
_EDGES = 0.04
"""Share of the background's pixels on edges above which it is no plain wall."""
_SIDE = 320
"""Longest side in pixels at which the background is measured."""
_WEIGHTS = {
    "person": 1.0, "whole": 0.8, "upright": 0.5, "alone": 0.6, "large": 0.4, "view": 0.2,
    "background": 0.4,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PhotoFinding:
    """Result of one check.

    Attributes:
        name: 'person', 'whole', 'upright', 'alone', 'large', 'view' or 'background'.
        is_good: whether it is as a render needs it.
        sentence: what was found and, where it is not good, what to do.
    """

    name: str
    is_good: bool
    sentence: str


@dataclass(frozen=True, kw_only=True)
class PhotoCheck:
    """Result of `check_photo`.

    Attributes:
        findings: one for each check; only 'person' where no person is found.
    """

    findings: tuple[PhotoFinding, ...]

    @property
    def score(self) -> float:
        """Fitness in [0, 1]: 1 where all checks pass, 0 where no person is found."""
        score = 1.0
        for finding in self.findings:
            if not finding.is_good:
                score *= 1 - _WEIGHTS[finding.name]
        return score

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences of what is not good."""
        return tuple(finding.sentence for finding in self.findings if not finding.is_good)

    @property
    def is_usable(self) -> bool:
        """Whether the score is at least 0.5."""
        return self.score >= 0.5


def check_photo(photo: UInt8[np.ndarray, "H W 3"]) -> PhotoCheck:
    """Checks whether a photo suits rendering.

    Args:
        photo: RGB, upright.
    """
    people = _follower().search(photo)
    sure = [(landmarks, score) for landmarks, score in people if score >= _SURE]
    if not sure:
        sentence = "no whole person is found in the photo; use one from head to foot"
        return PhotoCheck(findings=(PhotoFinding(name="person", is_good=False, sentence=sentence),))
    person = sure[0][0]
    others = [one for one, _ in sure[1:] if size_of(one) > _OTHER * size_of(person)]
    findings = (
        PhotoFinding(name="person", is_good=True, sentence="a person is found"),
        _check_whole(person, photo.shape[0], photo.shape[1]),
        _check_upright(person),
        _check_alone(len(others) + 1),
        _check_size(person, photo.shape[0]),
        _check_view(person),
        _check_background(photo, person),
    )
    return PhotoCheck(findings=findings)


@lru_cache(maxsize=1)
def _follower() -> Follower:
    return Follower(PersonDetector(threshold=0.3), LandmarkReader())


def _check_whole(person: Landmarks, height: int, width: int) -> PhotoFinding:
    joints, size = person.joints, size_of(person)
    missing: list[str] = []
    top = float(joints[INDEX["nose"], 1]) - 0.1 * size
    if top < -0.02 * size:
        missing.append("the head")
    for name, places in (("the legs", ("knee",)), ("the feet", ("ankle", "foot"))):
        seen = [_is_seen(joints, f"{side}_{place}", height, width)
                for side in ("left", "right") for place in places]  # fmt: skip
        if not any(seen):
            missing.append(name)
    hands = [_is_inside(joints, f"{side}_wrist", height, width) for side in ("left", "right")]
    if not all(hands):
        missing.append("a hand")
    if missing:
        what = " and ".join(missing)
        return PhotoFinding(
            name="whole",
            is_good=False,
            sentence=f"{what} cannot be seen; use a photo from head to foot",
        )
    return PhotoFinding(name="whole", is_good=True, sentence="the person is seen from head to foot")


def _is_inside(joints: Float[np.ndarray, "33 4"], name: str, height: int, width: int) -> bool:
    x, y = joints[INDEX[name], :2]
    return bool(0 <= x < width and 0 <= y < height)


def _is_seen(joints: Float[np.ndarray, "33 4"], name: str, height: int, width: int) -> bool:
    visible = bool(joints[INDEX[name], 3] >= _VISIBLE)
    return visible and _is_inside(joints, name, height, width)


def _check_upright(person: Landmarks) -> PhotoFinding:
    up = (point(person.joints, "middle_hip") - point(person.joints, "middle_shoulder"))[:2]
    cosine = float(up[1] / max(float(np.linalg.norm(up)), 1e-6))
    if cosine >= _UPRIGHT:
        return PhotoFinding(name="upright", is_good=True, sentence="the person stands upright")
    lean = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return PhotoFinding(
        name="upright",
        is_good=False,
        sentence=f"the person leans or lies ({lean:.0f} degrees); turn the photo or use another",
    )


def _check_alone(number: int) -> PhotoFinding:
    if number == 1:
        return PhotoFinding(name="alone", is_good=True, sentence="one person is in the photo")
    return PhotoFinding(
        name="alone",
        is_good=False,
        sentence=f"{number} people are in the photo; cut out the one to be animated",
    )


def _check_size(person: Landmarks, height: int) -> PhotoFinding:
    size = size_of(person)
    share = size / height
    if share >= _LARGE and size >= _FEWEST_PIXELS / 2:
        return PhotoFinding(
            name="large", is_good=True, sentence=f"the person fills {share:.0%} of the height"
        )
    return PhotoFinding(
        name="large",
        is_good=False,
        sentence=f"the person is small ({share:.0%} of the height, {size:.0f} pixels); "
        "cut the photo to the person",
    )


def _check_view(person: Landmarks) -> PhotoFinding:
    across = point(person.joints, "left_shoulder") - point(person.joints, "right_shoulder")
    share = float(across[0] / max(float(np.linalg.norm(across)), 1e-6))
    if share >= _SEEN_FROM_FRONT:
        return PhotoFinding(name="view", is_good=True, sentence="the person faces the camera")
    side = "the back" if share <= -_SEEN_FROM_FRONT else "the side"
    return PhotoFinding(
        name="view",
        is_good=False,
        sentence=f"the person is seen from {side}; what the photo does not show is made up",
    )


def _check_background(photo: UInt8[np.ndarray, "H W 3"], person: Landmarks) -> PhotoFinding:
    scale = min(1.0, _SIDE / max(photo.shape[:2]))
    size = (max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale)))
    small = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    joints = person.joints[:, :2] * scale
    # The body is covered by thick lines and left out.
    outside = np.ones((size[1], size[0]), np.uint8)
    hull = cv2.convexHull(np.round(joints).astype(np.int32))
    cv2.fillConvexPoly(outside, hull, 0)
    reach = max(3, round(0.12 * size_of(person) * scale)) | 1
    outside = cv2.erode(outside, np.ones((reach, reach), np.uint8))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    shown = outside > 0
    if shown.mean() < 0.02:
        return PhotoFinding(
            name="background", is_good=True, sentence="the person covers the background"
        )
    values = grey[shown].astype(np.float32)
    deviation = float(np.median(np.abs(values - np.median(values))))
    edges = float((cv2.Canny(grey, 60, 120)[shown] > 0).mean())
    if deviation <= _BUSY and edges <= _EDGES:
        return PhotoFinding(name="background", is_good=True, sentence="the background is plain")
    return PhotoFinding(
        name="background",
        is_good=False,
        sentence="the background is not plain, unlike that of the training data; "
        "use a photo before a plain wall",
    )
