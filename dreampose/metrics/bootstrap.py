"""How sure a mean over people is: bootstrap intervals. Knows nothing of what was measured.

People are drawn, not clips or frames: those of one person are alike, and counting them as
independent would promise too much.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

LEVEL = 0.95
_NORMAL = 1.959964
"""Quantile of the normal distribution that belongs to `LEVEL`."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and the 95% interval around it; the ends are NaN where one person says nothing."""

    value: float
    low: float
    high: float


def draws(
    num_people: int, *, resamples: int, seed: int
) -> Int64[np.ndarray, "resamples num_people"]:
    """Which people each resample holds; the same for every score and method, so they pair up."""
    return np.random.default_rng(seed).integers(0, num_people, (resamples, num_people))


def bootstrap_mean(
    people: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over people with the percentile interval of its resamples (Efron 1979).

    Args:
        people: one value a person.
        resamples: how often as many people are drawn, with repetition.
        seed: of the draws.
    """
    value = float(people.mean())
    if len(people) < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    means = people[draws(len(people), resamples=resamples, seed=seed)].mean(axis=1)
    return _between(value, means)


def bootstrap_grid(
    values: Float[np.ndarray, "people runs"], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over people and trainings with the percentile interval of its resamples.

    People are drawn and, independently, trainings, and all cells where the two meet are taken
    ("pigeonhole bootstrap", Owen 2007): the interval answers for other people and other seeds.
    With one training it is that of `bootstrap_mean` and says nothing of seeds.

    Args:
        values: of each person in each training.
        resamples: how often as many people and trainings are drawn, with repetition.
        seed: of the draws, the same for every score and method, so that they pair up.
    """
    value = float(values.mean())
    if len(values) < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    return _between(value, _grid_means(values, resamples, seed))


def bootstrap_ratio(
    above: Float[np.ndarray, "people runs"],
    below: Float[np.ndarray, "people runs"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Quotient of two means, resampled as one: see `bootstrap_grid`."""
    value = float(above.mean() / below.mean())
    if len(above) < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    ratios = _grid_means(above, resamples, seed) / _grid_means(below, resamples, seed)
    return _between(value, ratios)


def bootstrap_statistic(
    statistic: Callable[[Sequence[int]], float],
    num_people: int,
    *,
    resamples: int = 20,
    seed: int = 0,
) -> Interval:
    """A value of the whole set, such as a Fréchet distance, with a normal interval.

    The interval is the value ± 1.96 standard deviations of the resamples. Their percentiles would
    be wrong: a resample repeats people, which alone moves a Fréchet distance.

    Args:
        statistic: takes indices of people, some of them repeated.
        num_people: how many there are.
        resamples: how often as many people are drawn, with repetition.
        seed: of the draws.
    """
    value = statistic(range(num_people))
    if num_people < 2 or resamples < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    drawn = draws(num_people, resamples=resamples, seed=seed)
    spread = float(np.std([statistic([int(i) for i in row]) for row in drawn], ddof=1))
    return Interval(value=value, low=value - _NORMAL * spread, high=value + _NORMAL * spread)


def _grid_means(
    values: Float[np.ndarray, "people runs"], resamples: int, seed: int
) -> Float[np.ndarray, " resamples"]:
    num_people, num_runs = values.shape
    people = draws(num_people, resamples=resamples, seed=seed)
    runs = np.random.default_rng((seed, 1)).integers(0, num_runs, (resamples, num_runs))
    return values[people[:, :, None], runs[:, None, :]].mean(axis=(1, 2))


def _between(value: float, resampled: Float[np.ndarray, " resamples"]) -> Interval:
    """The percentile interval (Efron 1979)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))
