"""Intervals, ranks and fronts against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from plait.statistics.comparisons import average, below, bootstrap, interval, pareto, separated, spearman
from plait.statistics.interval import Interval


def of(low: float, high: float, over: str = "seeds") -> Interval:
    return Interval(mean=(low + high) / 2, low=low, high=high, n=3, over=over)


def test_bootstrap_of_two_values_is_their_range() -> None:
    # the mean of a resample of (0, 1) is 0, 0.5 or 1 with chances 1/4, 1/2, 1/4
    assert bootstrap([0.0, 1.0]) == (0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_of_many_values() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, size=400)
    half = 1.96 * values.std() / math.sqrt(400)
    low, high = bootstrap(values)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_is_reproducible_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(1).normal(size=50))
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)


def test_few_values_get_students_interval() -> None:
    # mean 2, standard deviation 1: 2 -+ 4.303 / sqrt(3)
    found = interval([1.0, 2.0, 3.0], "seeds")
    assert (found.mean, found.n, found.over) == (2.0, 3, "seeds")
    assert found.low == pytest.approx(2 - 4.303 / math.sqrt(3))
    assert found.high == pytest.approx(2 + 4.303 / math.sqrt(3))


def test_many_values_get_the_bootstrap() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0]
    found = interval(values, "seeds")
    assert (found.low, found.high) == bootstrap(values)


def test_interval_stays_in_bounds() -> None:
    found = interval([0.98, 1.0], "seeds", (0.0, 1.0))
    assert found.high == 1.0
    assert found.low == pytest.approx(0.99 - 12.706 * 0.01)  # s / sqrt(2) = 0.01


def test_single_value_has_no_interval() -> None:
    found = interval([0.7], "seeds")
    assert (found.low, found.mean, found.high, found.n, found.over) == (0.7, 0.7, 0.7, 1, "none")


def test_separation() -> None:
    assert below(of(0, 1), of(1.1, 2))
    assert not below(of(1.1, 2), of(0, 1))
    assert separated(of(1.1, 2), of(0, 1))
    assert not separated(of(0, 1), of(1, 2))  # they touch
    assert not separated(of(0, 0, "none"), of(1, 2))


def test_average() -> None:
    both = average([of(0, 2), of(2, 6)])
    assert (both.low, both.mean, both.high) == (1, 2.5, 4)
    assert average([of(0, 2), of(2, 6, "none")]).over == "none"


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6 * 4 / (5 * 24)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)
    # a tie takes the mean rank: 1 2.5 2.5 4 against 1 2 3 4
    assert spearman([5, 7, 7, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1, 1], [1, 2]) is None


def test_pareto() -> None:
    points = {"a": (1.0, 0.2), "b": (2.0, 0.9), "c": (2.0, 0.5), "d": (3.0, 0.9), "e": (4.0, 1.0), "f": (1.0, 0.2)}
    assert pareto(points) == ["a", "f", "b", "e"]
