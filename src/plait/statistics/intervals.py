"""95 % intervals of scores, and whether two models differ on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def bootstrap(
    values: Sequence[float], resamples: int = 10_000, seed: int = 0, weights: Sequence[float] | None = None
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean (Efron, 1979).

    Args:
        values: independent measurements.
        resamples: how many means are drawn.
        seed: of the resampling.
        weights: of the values, which stay with them when they are drawn; None: each counts once.

    Returns:
        The 2.5 % and 97.5 % percentiles of the resampled means.
    """
    sample = np.asarray(values, dtype=np.float64)
    weight = None if weights is None else np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, 2**22 // len(sample))  # bounds the memory of a long sample
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = generator.integers(len(sample), size=(count, len(sample)))
        if weight is None:
            means[start : start + count] = sample[drawn].mean(axis=1)
        else:
            sums, totals = (sample * weight)[drawn].sum(axis=1), weight[drawn].sum(axis=1)
            means[start : start + count] = np.divide(sums, totals, out=np.full(count, np.nan), where=totals > 0)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, 1927).

    Args:
        successes: number of right answers.
        n: number of answers, at least 1.

    Returns:
        lower and upper bound; inside (0, 1) also where all answers are right or all wrong.
    """
    share = successes / n
    centre = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    scale = 1 + Z**2 / n
    low, high = (centre - half) / scale, (centre + half) / scale
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)  # exactly, whatever the rounding


def score_interval(values: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean score: Wilson's where every value is 0 or 1, else the bootstrap's."""
    if interval_method(values) == "Wilson":
        return wilson(sum(values), len(values))
    return bootstrap(values)


def interval_method(values: Sequence[float]) -> str:
    """How :func:`score_interval` finds it: ``Wilson`` or ``bootstrap``; ``none`` where one value shows no interval."""
    if all(value in (0, 1) for value in values):
        return "Wilson"
    return "bootstrap" if len(values) > 1 else "none"


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float:
    """Exact two-sided McNemar test: the chance of a difference this large if both models were equally good.

    Args:
        first, second: 0 or 1 for each sample, in the same order.

    Returns:
        p: binomial, over the samples on which the two differ (McNemar, 1947; the exact form).
    """
    won = sum(a > b for a, b in zip(first, second, strict=True))
    lost = sum(a < b for a, b in zip(first, second, strict=True))
    n = won + lost
    tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def sign_flips(differences: Sequence[float], resamples: int = 10_000, seed: int = 0) -> float:
    """Two-sided paired permutation test of a mean difference, for scores between 0 and 1 (Fisher, 1935).

    Args:
        differences: one per sample.
        resamples: random assignments of signs.
        seed: of the signs.

    Returns:
        p: the share of assignments whose mean is at least as far from zero, the observed one among them.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    generator = np.random.default_rng(seed)
    observed, extreme = abs(values.sum()), 1
    rows = max(1, 2**22 // len(values))
    for start in range(0, resamples, rows):
        signs = generator.choice((-1.0, 1.0), size=(min(rows, resamples - start), len(values)))
        extreme += int((np.abs(signs @ values) >= observed - 1e-12).sum())
    return extreme / (resamples + 1)
