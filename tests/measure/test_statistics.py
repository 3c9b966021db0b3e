"""Means and their intervals."""

import math

import numpy as np
import pytest

from fedgaze.measure import summarise


def test_intervals_hold_the_mean_of_what_they_were_drawn_from() -> None:
    """Of 200 samples of 40 numbers each, about 95 in a hundred intervals do."""
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = summarise(random.normal(3, 2, 40))
        hits += found.low <= 3 <= found.high
    assert 180 <= hits <= 198


def test_the_interval_is_about_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = summarise(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)
    assert summarise(values) == found


def test_what_has_no_value_is_counted_and_not_averaged() -> None:
    found = summarise([1.0, math.nan, 3.0, math.nan])
    assert (found.mean, found.n, found.missing) == (2, 2, 2)
    assert 1 <= found.low <= found.high <= 3


def test_of_one_value_there_is_no_interval_and_of_none_no_mean() -> None:
    one = summarise([0.25, math.nan])
    assert (one.mean, one.n, one.missing) == (0.25, 1, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = summarise([math.nan])
    assert math.isnan(none.mean)
    assert (none.n, none.missing) == (0, 1)
    same = summarise([0.5] * 9)
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)
