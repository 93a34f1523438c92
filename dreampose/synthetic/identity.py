"""Who walks: body, skin, hair, clothes, gait and studio of one person. Knows nothing of meshes.

Train, val and test are disjoint by construction: identity seeds and pattern seeds carry the split
in their remainder, and every pair of cloth colours belongs to exactly one split.
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
"""Largest change of a cloth colour's channel: small, so that colours stay apart."""
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
    """Everything that makes one person and their studio; angles are degrees, lengths dm."""

    seed: int
    """Remainder modulo three is the split's place in `SPLITS`."""
    split: str
    pattern_seed: int
    """Remainder modulo three is the split's place in `SPLITS`."""
    targets: tuple[tuple[str, float], ...]
    """Weighted shape targets of the body."""
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
    """Main and second cloth colour; the second is also the first pattern's accent."""
    shoes: Colour
    sleeve: float
    """Sleeve length: 0 none, 1 to the elbow, 2 to the wrist."""
    neckline: float
    """Depth of the neckline in front."""
    hem: float
    """Length of a skirt as a share of the way from the waist to the ankles."""
    flare: float
    """How much an A-line skirt or the trouser legs widen."""
    loose: float
    """Ease of the top over the body."""
    stride: float
    cadence: float
    """Strides (two steps) per second."""
    arm_swing: float
    sway: float
    phase: float
    start_yaw: float
    """Within 30 degrees of the camera."""
    walk_yaw: float
    """How far the person veers during a walk."""
    turn_rate: float
    """Signed degrees per second of a turn, reached in clips long enough; see `gait`."""
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
        """Plain values, for JSON."""
        return asdict(self)


def colour_pairs(split: str) -> list[tuple[str, str]]:
    """The unordered pairs of cloth colours that belong to a split: about 7 : 1 : 2 of them."""
    pairs = list(combinations(CLOTH_COLOURS, 2))
    owners = {"train": (0, 1, 3, 4, 6, 7, 9), "val": (2,), "test": (5, 8)}[split]
    names = list(CLOTH_COLOURS)
    return [
        pair for pair in pairs if (names.index(pair[0]) * 3 + names.index(pair[1])) % 10 in owners
    ]


def check_split(split: str) -> None:
    """Refuses a split that does not exist.

    Raises:
        InputError: `split` is not one of `SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def identity(seed: int, split: str) -> Identity:
    """The person of that number in that split; the same number gives the same person.

    Args:
        seed: not negative.
        split: 'train', 'val' or 'test'.

    Raises:
        InputError: an argument is outside its range.
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

    # Numbers in a row take outfits and patterns in turn, so that small sets hold all of them.
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
    """Shape targets of an adult: ancestry, age, weight, muscle, height and proportions."""
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
