"""Random parameters of a synthetic person and their studio.

The splits are disjoint by construction: the remainder modulo three of identity seeds and pattern
seeds encodes the split, and every pair of cloth colours belongs to exactly one split.
"""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from dreampose.errors import InputError

SPLITS = ("train", "val", "test")
PATTERNS = ("plain", "stripes", "dots", "plaid", "logo", "gradient")
OUTFITS = ("dress", "skirt", "trousers")
HAIR_STYLES = ("short", "bob", "long", "bun")
CLOTH_COLOURS = {
    "white": (238, 236, 230),
    "black": (38, 37, 41),
    "grey": (136, 138, 142),
    "navy": (34, 47, 92),
    "blue": (45, 98, 190),
    "sky": (140, 186, 228),
    "teal": (20, 122, 124),
    "mint": (160, 214, 190),
    "green": (38, 122, 62),
    "olive": (112, 116, 52),
    "lemon": (242, 218, 90),
    "mustard": (206, 154, 38),
    "orange": (230, 116, 40),
    "coral": (240, 128, 112),
    "red": (196, 34, 42),
    "wine": (112, 24, 48),
    "pink": (238, 160, 188),
    "magenta": (192, 40, 126),
    "violet": (112, 64, 160),
    "lilac": (186, 164, 218),
    "brown": (104, 66, 42),
    "camel": (190, 148, 100),
    "cream": (234, 218, 186),
    "khaki": (172, 162, 122),
}
COLOUR_JITTER = 5
"""Largest change of a channel of a cloth colour; small enough to keep the colours distinct."""
SKIN_TONES = (
    (246, 206, 180),
    (236, 188, 156),
    (222, 172, 138),
    (198, 144, 108),
    (164, 112, 80),
    (126, 82, 58),
    (92, 60, 46),
)
HAIR_COLOURS = (
    (24, 20, 20),
    (44, 30, 24),
    (78, 50, 34),
    (116, 76, 46),
    (168, 122, 70),
    (208, 170, 110),
    (134, 56, 34),
    (150, 146, 144),
)
EYE_COLOURS = ((70, 46, 30), (96, 70, 40), (60, 96, 130), (70, 110, 80), (40, 30, 26))
BACKDROPS = (
    (236, 236, 236),
    (226, 228, 232),
    (240, 236, 228),
    (214, 216, 220),
    (244, 242, 240),
    (228, 222, 216),
    (218, 226, 230),
)
SHOE_COLOURS = ((34, 33, 36), (92, 58, 38), (232, 230, 226), (150, 40, 44), (60, 70, 96))

Colour = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Parameters of one person and their studio; angles in degrees, lengths in decimetres."""

    seed: int
    """Its remainder modulo three is the index of the split in `SPLITS`."""
    split: str
    pattern_seed: int
    """Its remainder modulo three is the index of the split in `SPLITS`."""
    targets: tuple[tuple[str, float], ...]
    """Names and weights of the body's shape targets."""
    skin: Colour
    hair: Colour
    hair_style: str
    eyes: Colour
    outfit: str
    pattern: str
    second_pattern: str
    """Pattern of the skirt or trousers; a dress has one pattern."""
    colour_pair: tuple[str, str]
    colours: tuple[Colour, Colour]
    """Main and second cloth colour; the second is also the accent of the first pattern."""
    shoes: Colour
    sleeve: float
    """Sleeve length: 0 none, 1 to the elbow, 2 to the wrist."""
    neckline: float
    """Depth of the neckline in front."""
    hem: float
    """Length of a skirt as a fraction of the distance from the waist to the ankles."""
    flare: float
    """Widening of an A-line skirt or of trouser legs, 0 to 1."""
    loose: float
    """Ease of the top, 0 to 1."""
    stride: float
    """Amplitude of the hip angle."""
    cadence: float
    """Strides (two steps) per second."""
    arm_swing: float
    """Amplitude of the arm angle."""
    sway: float
    """Amplitude of the pelvis roll."""
    phase: float
    """Phase of the gait cycle in the first frame, in radians."""
    start_yaw: float
    """Heading in the first frame, -30 to 30; 0 faces the camera."""
    walk_yaw: float
    """Change of heading during a walk."""
    turn_rate: float
    """Signed degrees per second of a turn in clips of at least 3 s; see `gait.poses`."""
    camera_height: float
    camera_distance: float
    camera_yaw: float
    light_yaw: float
    light_height: float
    light_strength: float
    warmth: float
    """Light colour: -1 cool to 1 warm."""
    backdrop: Colour

    def to_dict(self) -> dict[str, Any]:
        """JSON-serialisable values."""
        return asdict(self)


def colour_pairs(split: str) -> list[tuple[str, str]]:
    """Unordered pairs of cloth colours of a split; train, val, test get about 70, 10, 20 %."""
    pairs = list(combinations(CLOTH_COLOURS, 2))
    owners = {"train": (0, 1, 3, 4, 6, 7, 9), "val": (2,), "test": (5, 8)}[split]
    names = list(CLOTH_COLOURS)
    return [
        pair for pair in pairs if (names.index(pair[0]) * 3 + names.index(pair[1])) % 10 in owners
    ]


def check_split(split: str) -> None:
    """Checks the name of a split.

    Raises:
        InputError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def identity(seed: int, split: str) -> Identity:
    """Draws a person. The result is identical for identical arguments.

    Args:
        seed: number of the person in the split, not negative.
        split: 'train', 'val' or 'test'.

    Raises:
        InputError: an argument is out of range.
    """
    check_split(split)
    if seed < 0:
        raise InputError(f"seed must not be negative, got {seed}")
    code = SPLITS.index(split)
    own = seed * len(SPLITS) + code
    random = np.random.default_rng([own, 20230413])

    def between(low: float, high: float) -> float:
        return round(float(random.uniform(low, high)), 4)

    def pick(options: tuple[Any, ...]) -> Any:
        return options[int(random.integers(len(options)))]

    def jitter(colour: Colour, size: int) -> Colour:
        red, green, blue = np.clip(np.array(colour) + random.integers(-size, size + 1, 3), 0, 255)
        return int(red), int(green), int(blue)

    # Consecutive numbers cycle through outfits and patterns, so small sets contain all of them.
    outfit = OUTFITS[seed % len(OUTFITS)]
    pattern = PATTERNS[(seed // len(OUTFITS)) % len(PATTERNS)]
    female = outfit != "trousers" or bool(random.random() < 0.4)
    tone = int(random.integers(len(SKIN_TONES)))
    pairs = colour_pairs(split)
    pair = pairs[int(random.integers(len(pairs)))]
    if random.random() < 0.5:
        pair = pair[1], pair[0]
    first, second = (jitter(CLOTH_COLOURS[name], COLOUR_JITTER) for name in pair)
    styles = HAIR_STYLES if female else ("short",)
    hair = HAIR_COLOURS[int(random.integers(len(HAIR_COLOURS) if tone < 3 else 4))]
    sign = 1.0 if random.random() < 0.5 else -1.0
    return Identity(
        seed=own,
        split=split,
        pattern_seed=int(random.integers(2**40)) * len(SPLITS) + code,
        targets=_body(random, female=female, tone=tone),
        skin=jitter(SKIN_TONES[tone], 6),
        hair=jitter(hair, 6),
        hair_style=pick(styles),
        eyes=pick(EYE_COLOURS if tone < 3 else EYE_COLOURS[:2]),
        outfit=outfit,
        pattern=pattern,
        second_pattern="plain" if random.random() < 0.7 else pick(("stripes", "plaid", "dots")),
        colour_pair=pair,
        colours=(first, second),
        shoes=jitter(pick(SHOE_COLOURS), 4),
        sleeve=pick((0.0, 0.45, 0.8, 1.4, 1.85)),
        neckline=between(0.1, 0.9 if female else 0.35),
        hem=between(0.42, 0.86),
        flare=between(0.0, 1.0),
        loose=between(0.0, 1.0),
        stride=between(19, 27),
        cadence=between(0.75, 1.1),
        arm_swing=between(10, 24),
        sway=between(2, 6),
        phase=between(0, 2 * np.pi),
        start_yaw=between(-30, 30),
        walk_yaw=between(-35, 35),
        turn_rate=round(sign * float(random.uniform(100, 160)), 4),
        camera_height=between(9, 14),
        camera_distance=between(52, 72),
        camera_yaw=between(-4, 4),
        light_yaw=between(-55, 55),
        light_height=between(30, 60),
        light_strength=between(0.85, 1.12),
        warmth=between(-1, 1),
        backdrop=jitter(pick(BACKDROPS), 4),
    )


def _body(random: np.random.Generator, *, female: bool, tone: int) -> tuple[tuple[str, float], ...]:
    """Shape targets of an adult: ancestry, age, weight, muscle, height, proportions."""
    gender = "female" if female else "male"
    lean = {"african": 0.2, "asian": 0.2, "caucasian": 0.2}
    lean["caucasian" if tone < 2 else "asian" if tone < 4 else "african"] += 1.2
    shares = random.dirichlet(list(lean.values()))
    old = float(random.beta(1.2, 3)) * 0.6
    targets: dict[str, float] = {}
    for race, share in zip(lean, shares, strict=True):
        targets[f"macrodetails/{race}-{gender}-young"] = float(share) * (1 - old)
        targets[f"macrodetails/{race}-{gender}-old"] = float(share) * old
    build = f"macrodetails/universal-{gender}-young-"
    weight = float(random.uniform(-0.75, 0.7))
    muscle = float(random.uniform(-0.5, 0.7))
    targets[f"{build}averagemuscle-{'max' if weight > 0 else 'min'}weight"] = abs(weight)
    targets[f"{build}{'max' if muscle > 0 else 'min'}muscle-averageweight"] = abs(muscle) * 0.7
    height = float(random.uniform(-0.45, 0.45))
    side = "max" if height > 0 else "min"
    targets[f"macrodetails/height/{gender}-young-averagemuscle-averageweight-{side}height"] = abs(
        height
    )
    for name in ("shoulder-dist", "waist-circ", "hips-circ"):
        amount = float(random.uniform(-0.6, 0.6))
        targets[f"torso/measure-{name}-{'incr' if amount > 0 else 'decr'}"] = abs(amount)
    targets["legs/measure-upperleg-height-incr"] = float(random.uniform(0, 0.6))
    targets["legs/measure-lowerleg-height-incr"] = float(random.uniform(0, 0.6))
    return tuple((name, round(weight, 4)) for name, weight in targets.items())
