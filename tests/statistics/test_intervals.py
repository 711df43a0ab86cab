"""Intervals and tests of differences against published examples and exact counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from plait.statistics.intervals import mcnemar, score_interval, sign_flips, wilson


def test_wilson_against_newcombe() -> None:
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_scores_that_are_right_or_wrong_get_wilson_and_others_the_bootstrap() -> None:
    assert score_interval([1, 0, 1, 1]) == wilson(3, 4)
    low, high = score_interval([0.5] * 10 + [0.75] * 10)
    assert 0.55 < low < 0.625 < high < 0.7


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 5), (10, 2), (3, 14)])
def test_mcnemar_is_the_binomial_test_of_the_pairs_that_differ(won: int, lost: int) -> None:
    a = [1.0] * won + [0.0] * lost + [1.0, 0.0, 1.0]
    b = [0.0] * won + [1.0] * lost + [1.0, 0.0, 1.0]
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


def test_sign_flips_agree_with_all_assignments() -> None:
    differences = [0.25, 0.5, -0.125, 0.75, 0.5, 0.25, 0.0]
    values = np.array(differences[:-1])
    signs = np.array(np.meshgrid(*[(-1, 1)] * 6)).reshape(6, -1)
    exact = np.mean(np.abs(values @ signs) >= values.sum() - 1e-12)
    assert sign_flips(differences) == pytest.approx(exact, abs=0.01)
    assert sign_flips([0.0, 0.0]) == 1.0
    assert sign_flips([0.1] * 40) < 0.001


def test_wilson_stays_inside_and_shrinks() -> None:
    assert wilson(20, 20)[1] == 1.0
    widths = [np.diff(wilson(n / 2, n))[0] for n in (10, 100, 1000)]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.2)
    assert widths[1] / widths[2] == pytest.approx(math.sqrt(10), rel=0.02)
