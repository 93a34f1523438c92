"""Bootstrap confidence intervals over people and training runs.

People are resampled, not clips or frames: the frames of one person are correlated, and treating
them as independent would give intervals that are too narrow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float

LEVEL = 0.95
"""Confidence level of all intervals."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95% confidence interval; the ends are NaN if there is only one person."""

    value: float
    low: float
    high: float


def bootstrap_mean(
    people: Float[np.ndarray, " n"], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over people with a percentile interval (Efron 1979).

    Args:
        people: one value per person.
        resamples: number of resamples.
        seed: seed of the resamples; equal seeds give paired intervals of different scores.
    """
    return bootstrap_grid(people[:, None], resamples=resamples, seed=seed)


def bootstrap_grid(
    values: Float[np.ndarray, "people runs"], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean over people and training runs with a percentile interval.

    People and runs are resampled independently ("pigeonhole bootstrap", Owen 2007), so the interval
    holds for other people and other training seeds. With one run it is that of `bootstrap_mean`.

    Args:
        values: one value per person and run.
        resamples: number of resamples.
        seed: seed of the resamples; equal seeds give paired intervals of different scores.
    """

    def mean(people: np.ndarray, runs: np.ndarray) -> Any:
        return values[people[..., :, None], runs[..., None, :]].mean(axis=(-2, -1))

    return _percentile_interval(mean, *values.shape, resamples=resamples, seed=seed)


def bootstrap_ratio(
    above: Float[np.ndarray, "people runs"],
    below: Float[np.ndarray, "people runs"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Ratio of two means with a percentile interval; both means use the same resamples.

    Args:
        above: values of the numerator, one per person and run.
        below: values of the denominator.
        resamples: number of resamples.
        seed: seed of the resamples.
    """

    def ratio(people: np.ndarray, runs: np.ndarray) -> Any:
        cells = people[..., :, None], runs[..., None, :]
        return above[cells].mean(axis=(-2, -1)) / below[cells].mean(axis=(-2, -1))

    return _percentile_interval(ratio, *above.shape, resamples=resamples, seed=seed)


def bootstrap_statistic(
    statistic: Callable[[Sequence[int]], float],
    num_people: int,
    *,
    resamples: int = 20,
    seed: int = 0,
) -> Interval:
    """A statistic of the whole set, such as a Fréchet distance, with a normal interval.

    The interval is the value ± 1.96 standard errors. A percentile interval would be biased: a
    resample contains some people twice, which alone increases a Fréchet distance.

    Args:
        statistic: function of the indices of people, which may repeat.
        num_people: number of people.
        resamples: number of resamples.
        seed: seed of the resamples.
    """
    value = statistic(range(num_people))
    if num_people < 2 or resamples < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))

    def of_people(people: np.ndarray) -> float:
        return statistic([int(index) for index in people])

    found = _bootstrap(of_people, [np.arange(num_people)], resamples, seed, vectorized=False)
    spread = NormalDist().inv_cdf((1 + LEVEL) / 2) * float(found.standard_error)
    return Interval(value=value, low=value - spread, high=value + spread)


def _percentile_interval(
    statistic: Callable[[np.ndarray, np.ndarray], Any],
    num_people: int,
    num_runs: int,
    *,
    resamples: int,
    seed: int,
) -> Interval:
    """Interval of a statistic of indices of people and of runs, which are resampled separately."""
    # scipy needs two observations of each: a single run counts twice.
    people, runs = np.arange(num_people), np.arange(max(2, num_runs)) % num_runs
    value = float(statistic(people, runs))
    if num_people < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))

    def of_cells(people: np.ndarray, runs: np.ndarray, axis: int) -> Any:
        del axis  # always the last
        return statistic(people, runs)

    found = _bootstrap(of_cells, [people, runs], resamples, seed, vectorized=True)
    low, high = found.confidence_interval
    return Interval(value=value, low=float(low), high=float(high))


def _bootstrap(
    statistic: Callable[..., Any],
    samples: Sequence[np.ndarray],
    resamples: int,
    seed: int,
    *,
    vectorized: bool,
) -> Any:
    from scipy import stats  # imported here: slow, and training needs only distances

    return stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        vectorized=vectorized,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
