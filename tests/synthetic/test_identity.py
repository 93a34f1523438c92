"""Parameters of synthetic people, and the separation of the splits."""

from itertools import combinations

import numpy as np
import pytest

from dreampose.errors import InputError
from dreampose.synthetic.identity import (
    CLOTH_COLOURS,
    COLOUR_JITTER,
    OUTFITS,
    PATTERNS,
    SPLITS,
    colour_pairs,
    identity,
)

PEOPLE = {split: [identity(number, split) for number in range(400)] for split in SPLITS}


@pytest.mark.parametrize(("one", "other"), list(combinations(SPLITS, 2)))
def test_splits_share_no_seed_pattern_or_colour_pair(one, other):
    for facet in (
        lambda person: person.seed,
        lambda person: person.pattern_seed,
        lambda person: person.pattern_seed + 3,  # seed of the second garment's pattern
        lambda person: frozenset(person.colour_pair),
        lambda person: frozenset(person.colours),
    ):
        assert not {facet(p) for p in PEOPLE[one]} & {facet(p) for p in PEOPLE[other]}


def test_every_colour_pair_belongs_to_exactly_one_split():
    owned = [pair for split in SPLITS for pair in colour_pairs(split)]
    assert sorted(owned) == sorted(combinations(CLOTH_COLOURS, 2))


def test_jittered_cloth_colours_stay_distinct():
    for one, other in combinations(CLOTH_COLOURS.values(), 2):
        assert np.abs(np.subtract(one, other)).max() > 2 * COLOUR_JITTER


@pytest.mark.parametrize("split", SPLITS)
def test_eighteen_people_cover_all_outfits_and_patterns(split):
    seen = {(person.outfit, person.pattern) for person in PEOPLE[split][:18]}
    assert seen == {(outfit, pattern) for outfit in OUTFITS for pattern in PATTERNS}


def test_people_are_adults_and_differ():
    people = PEOPLE["train"]
    names = {name for person in people for name, _ in person.targets}
    assert not [name for name in names if "child" in name or "baby" in name]
    assert len({person.skin for person in people}) > 100
    assert len({person.targets for person in people}) == len(people)
    assert all(abs(person.start_yaw) <= 30 for person in people)


def test_identity_is_deterministic():
    assert identity(7, "val") == identity(7, "val")
    assert identity(7, "val") != identity(8, "val")


@pytest.mark.parametrize(
    ("seed", "split", "named"), [(-1, "train", "seed"), (0, "dev", "split"), (0, "", "split")]
)
def test_errors_name_the_argument(seed, split, named):
    with pytest.raises(InputError, match=f"^{named} must"):
        identity(seed, split)
