"""The three laws of an architecture from its runs, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plait.errors import DataError
from plait.study.scaling.envelope import Point, Run, compute_envelope, smoothed
from plait.study.scaling.laws import Laws, fit_power_law

#: Points of an envelope below which a line through them would say nothing.
FEWEST_POINTS = 3
#: Runs below which resampling would mostly give the same set again.
FEWEST_RUNS = 4


@dataclass(frozen=True)
class Spread:
    """95 % intervals of the three exponents, over resampled runs.

    Args:
        loss, parameters, tokens: low and high end.
        resamples: fits behind them.
    """

    loss: tuple[float, float]
    parameters: tuple[float, float]
    tokens: tuple[float, float]
    resamples: int


def optimal_allocation(envelope: Sequence[Point]) -> Laws:
    """Loss, best size and best number of tokens against FLOPs, each fitted on its own.

    Args:
        envelope: of one architecture, see :func:`~plait.study.scaling.envelope.compute_envelope`.

    Raises:
        DataError: the envelope has fewer than three points, or one size is the best everywhere.
    """
    if len(envelope) < FEWEST_POINTS:
        raise DataError(
            f"The envelope has {len(envelope)} points and a fit needs {FEWEST_POINTS}; train longer, log more often, "
            "or raise 'bins_per_decade'."
        )
    sizes = {point.size for point in envelope}
    if len(sizes) < 2:
        raise DataError(
            f"Size {envelope[0].size!r} has the lowest loss at every amount of compute, so the best size has no law; "
            "add sizes, or train longer."
        )
    flops = [point.flops for point in envelope]
    return Laws(
        loss=fit_power_law(flops, [point.loss for point in envelope]),
        parameters=fit_power_law(flops, [float(point.parameters) for point in envelope]),
        tokens=fit_power_law(flops, [point.tokens for point in envelope]),
    )


def exponent_intervals(
    runs: Sequence[Run], per_decade: int, resamples: int, seed: int, skip_tokens: float = 0
) -> Spread | None:
    """Percentile bootstrap of the exponents: runs are drawn with replacement, and all is fitted anew.

    A draw without a fit, such as one of a single size, is left out, so with few runs the intervals are too narrow
    rather than too wide.

    Args:
        runs: of one architecture.
        per_decade: bins per factor of ten in compute.
        resamples: draws.
        seed: of the draws.
        skip_tokens: as for :func:`~plait.study.scaling.envelope.smoothed`.

    Returns:
        The intervals; None where there are fewer than four runs, or fewer than half of the draws have a fit.
    """
    if len(runs) < FEWEST_RUNS:
        return None
    generator = np.random.default_rng(seed)
    exponents = []
    for _ in range(resamples):
        drawn = [runs[index] for index in generator.integers(len(runs), size=len(runs))]
        try:
            laws = optimal_allocation(compute_envelope(smoothed(drawn, per_decade, skip_tokens), per_decade))
        except DataError:
            continue
        exponents.append([laws.loss.exponent, laws.parameters.exponent, laws.tokens.exponent])
    if 2 * len(exponents) < resamples:
        return None
    low, high = np.percentile(np.asarray(exponents), [2.5, 97.5], axis=0)
    ends = [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Spread(ends[0], ends[1], ends[2], len(exponents))
