"""Bootstrap intervals: what they are made of, and that they cover what they promise."""

import numpy as np
import pytest

from dreampose.metrics import bootstrap_mean, bootstrap_statistic
from dreampose.metrics.intervals import draws


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
