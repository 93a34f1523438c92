"""Bootstrap intervals: what they are made of, and that they cover what they promise."""

import numpy as np
import pytest

from dreampose.metrics import (
    bootstrap_grid,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_statistic,
)
from dreampose.metrics.bootstrap import draws


def test_the_interval_is_that_of_means_of_people_drawn_again():
    people = np.array([0.1, 0.5, 0.2, 0.9, 0.4])
    found = bootstrap_mean(people, resamples=500, seed=7)
    random = np.random.default_rng(7)
    means = sorted(np.mean([people[i] for i in random.integers(0, 5, 5)]) for _ in range(500))
    assert found.value == pytest.approx(people.mean())
    assert found.low == pytest.approx(np.quantile(means, 0.025))
    assert found.high == pytest.approx(np.quantile(means, 0.975))
    assert found == bootstrap_mean(people, resamples=500, seed=7)
    assert found != bootstrap_mean(people, resamples=500, seed=8)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        interval = bootstrap_mean(random.normal(3, 1, 40), resamples=300, seed=trial)
        hits += interval.low <= 3 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_methods_share_their_draws_so_that_they_pair_up():
    people = np.random.default_rng(1).uniform(size=24)
    one, other = bootstrap_mean(people), bootstrap_mean(people + 0.25)
    assert other.low - one.low == pytest.approx(0.25)
    assert other.high - one.high == pytest.approx(0.25)


def test_a_statistic_of_the_set_gets_an_interval_around_its_value():
    people = np.random.default_rng(2).normal(size=30)
    found = bootstrap_statistic(lambda chosen: people[list(chosen)].mean(), 30, resamples=400)
    assert found.value == pytest.approx(people.mean())
    drawn = draws(30, resamples=400, seed=0)
    spread = people[drawn].mean(axis=1).std(ddof=1)
    assert found.high - found.value == pytest.approx(1.959964 * spread)
    assert found.value - found.low == pytest.approx(1.959964 * spread)


def test_one_person_gives_no_interval():
    assert np.isnan(bootstrap_mean(np.array([0.5])).low)
    assert np.isnan(bootstrap_statistic(lambda chosen: float(len(chosen)), 1).high)


def test_one_training_says_nothing_of_seeds():
    people = np.random.default_rng(0).random(9)
    assert bootstrap_grid(people[:, None]) == bootstrap_mean(people)


def test_where_seeds_make_no_difference_people_alone_count():
    people = np.random.default_rng(0).random(9)
    grid, alone = bootstrap_grid(np.repeat(people[:, None], 3, axis=1)), bootstrap_mean(people)
    assert (grid.value, grid.low, grid.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_where_only_trainings_differ_so_does_the_interval():
    # All three draws fall on the same training in 1 of 27 resamples, more than 2.5%.
    grid = bootstrap_grid(np.repeat([[0.1, 0.2, 0.6]], 20, axis=0))
    assert (grid.value, grid.low, grid.high) == pytest.approx((0.3, 0.1, 0.6))


def test_people_and_trainings_both_widen_the_interval():
    rng = np.random.default_rng(0)
    people, runs = rng.normal(0, 1, (40, 1)), rng.normal(0, 1, (1, 20))
    grid = bootstrap_grid(people + runs, resamples=4000)
    # Of a sum of independent effects, resampled on their own, variances add up.
    expected = np.sqrt(people.var() / 40 + runs.var() / 20)
    assert (grid.high - grid.low) / (2 * 1.96) == pytest.approx(expected, rel=0.06)


def test_a_ratio_is_resampled_as_one():
    below = np.random.default_rng(0).random((8, 3))
    ratio = bootstrap_ratio(2 * below, below)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))
    above = np.random.default_rng(1).random((8, 3))
    ratio = bootstrap_ratio(above, below)
    assert ratio.value == pytest.approx(above.mean() / below.mean())
    assert ratio.low < ratio.value < ratio.high
    assert np.isnan(bootstrap_ratio(above[:1], below[:1]).low)
    assert np.isnan(bootstrap_grid(above[:1]).low)
