"""Means with intervals, and what may be concluded from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from plait.statistics.interval import Interval
from plait.statistics.intervals import bootstrap

#: Two-sided 95 % quantiles of Student's t by number of values, where the bootstrap has too few of them.
STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182}


def interval(
    values: Sequence[float],
    over: Literal["seeds", "samples"],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """The mean of ``values`` with a 95 % interval.

    The interval is the percentile bootstrap. With two to four values that cannot reach beyond their range
    (three values miss the true mean one time in four), so there it is widened to Student's t interval.

    Args:
        values: one number per seed, or per sample.
        over: what the values are.
        bounds: range of the quantity, such as (0, 1) for an accuracy.

    Returns:
        An interval; ``over`` is ``none`` and the width zero when there is a single value.
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean=mean, low=mean, high=mean, n=1, over="none")
    low, high = bootstrap(values)
    if len(values) in STUDENT_T:
        half = STUDENT_T[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5
        low, high = min(low, mean - half), max(high, mean + half)
    return Interval(mean=mean, low=max(low, bounds[0]), high=min(high, bounds[1]), n=len(values), over=over)


def average(intervals: Sequence[Interval]) -> Interval:
    """The mean of several quantities; ends are averaged too, which is too wide rather than too narrow."""
    over = "none" if any(one.over == "none" for one in intervals) else intervals[0].over
    count = len(intervals)
    low, mean, high = (sum(getattr(one, name) for one in intervals) / count for name in ("low", "mean", "high"))
    return Interval(mean=mean, low=low, high=high, n=min(one.n for one in intervals), over=over)


def below(a: Interval, b: Interval) -> bool:
    """Whether ``a`` lies wholly below ``b``; never where one of them has no interval."""
    return "none" not in (a.over, b.over) and a.high < b.low


def separated(a: Interval, b: Interval) -> bool:
    """Whether the intervals do not overlap. Where they do, nothing may be concluded about a and b."""
    return below(a, b) or below(b, a)


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties with their mean rank; None when x or y is constant."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (x, y)]
    centred = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm > 0 else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Keys that no other point beats, by cost.

    Args:
        points: key -> (cost, quality); a lower cost and a higher quality are better.

    Returns:
        The keys of the front, cheapest first; of two equal points both stay.
    """

    def beaten(cost: float, quality: float) -> bool:
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points.values())

    front = [key for key, (cost, quality) in points.items() if not beaten(cost, quality)]
    return sorted(front, key=lambda key: points[key])
