"""Bootstrap intervals: definition and coverage."""

import numpy as np
import pytest

from dreampose.metrics import (
    bootstrap_grid,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
)


def test_mean_interval_is_the_percentile_interval_of_resampled_means():
    people = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    found = bootstrap_mean(people, resamples=500, seed=7)
    random = np.random.default_rng(7)
    means = sorted(np.mean([people[i] for i in random.integers(0, 5, 5)]) for _ in range(500))
    assert found.value == pytest.approx(people.mean())
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))
    assert found == bootstrap_mean(people, resamples=500, seed=7)
    assert found != bootstrap_mean(people, resamples=500, seed=8)


def test_mean_interval_has_its_nominal_coverage():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(random.normal(3, 1, 40), resamples=300, seed=trial)
        hits += interval.low <= 3 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_intervals_of_different_methods_use_the_same_resamples():
    people = np.random.default_rng(1).uniform(size=24)
    one, other = bootstrap_mean(people), bootstrap_mean(people + 0.25)
    assert other.low - one.low == pytest.approx(0.25)
    assert other.high - one.high == pytest.approx(0.25)


def test_statistic_interval_is_symmetric_with_the_standard_error():
    people = np.random.default_rng(2).normal(size=30)
    found = bootstrap_statistic(lambda chosen: people[list(chosen)].mean(), 30, resamples=400)
    assert found.value == pytest.approx(people.mean())
    drawn = np.random.default_rng(0).integers(0, 30, (400, 30))
    spread = people[drawn].mean(axis=1).std(ddof=1)
    assert found.high - found.value == pytest.approx(1.959964 * spread)
    assert found.value - found.low == pytest.approx(1.959964 * spread)


def test_one_person_has_no_interval():
    assert np.isnan(bootstrap_mean(np.array([0.5])).low)
    assert np.isnan(bootstrap_statistic(lambda chosen: float(len(chosen)), 1).high)


def test_with_one_run_the_grid_interval_is_the_mean_interval():
    people = np.random.default_rng(0).random(9)
    assert bootstrap_grid(people[:, None]) == bootstrap_mean(people)


def test_runs_without_variance_do_not_widen_the_interval():
    people = np.random.default_rng(0).random(9)
    grid, alone = bootstrap_grid(np.repeat(people[:, None], 3, axis=1)), bootstrap_mean(people)
    assert (grid.value, grid.low, grid.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_people_without_variance_leave_the_interval_of_runs():
    # All three draws are the same run in 1 of 27 resamples, more than 2.5%.
    grid = bootstrap_grid(np.repeat([[0.1, 0.2, 0.6]], 20, axis=0))
    assert (grid.value, grid.low, grid.high) == pytest.approx((0.3, 0.1, 0.6))


def test_variances_of_people_and_runs_add_up():
    rng = np.random.default_rng(0)
    people, runs = rng.normal(0, 1, (40, 1)), rng.normal(0, 1, (1, 20))
    grid = bootstrap_grid(people + runs, resamples=4000)

    expected = np.sqrt(people.var() / 40 + runs.var() / 20)
    assert (grid.high - grid.low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)


def test_ratio_resamples_both_means_together():
    below = np.random.default_rng(0).random((8, 3))
    ratio = bootstrap_ratio(2 * below, below)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    above = np.random.default_rng(1).random((8, 3))
    ratio = bootstrap_ratio(above, below)
    assert ratio.value == pytest.approx(above.mean() / below.mean())
    assert ratio.low < ratio.value < ratio.high
    assert np.isnan(bootstrap_ratio(above[:1], below[:1]).low)
    assert np.isnan(bootstrap_grid(above[:1]).low)
