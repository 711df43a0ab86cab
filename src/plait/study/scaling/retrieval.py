"""Two scores of a grid of needles in haystacks, over depths and context lengths.

Source: "Scaling Laws for Linear Complexity Language Models" (2406.16690), retrieval metrics. The paper gives neither
the bases of the weights nor the threshold, so they have to be chosen and told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from plait.errors import DataError, OptionError


def weighted_niah(scores: ArrayLike, depth_base: float = 1.0, context_base: float = 1.0) -> float:
    """The mean of the scores with weight depth_base^i * context_base^j at depth i and context j.

    Args:
        scores: ``(depths, contexts)`` in [0, 1], depth and length rising.
        depth_base: growth of the weight from depth to depth; 1 weighs all alike.
        context_base: growth from context to context.

    Raises:
        DataError: scores that are not such a grid.
        OptionError: a base below 1.
    """
    grid = _grid(scores)
    weights = _weights(grid.shape, depth_base, context_base)
    return float((weights * grid).sum() / weights.sum())


def niah_score(scores: ArrayLike, threshold: float = 0.5, depth_base: float = 1.0, context_base: float = 1.0) -> float:
    """:func:`weighted_niah` with each context's scores times how unbroken its successes are.

    A score of at least ``threshold`` is a success. A context without a success counts 0 times, one with successes at
    all depths once, any other 2^((1 - n) / 2) times, where n is the number of stretches of equal outcome over its
    depths.

    Args:
        scores, depth_base, context_base: as for :func:`weighted_niah`.
        threshold: in (0, 1].

    Raises:
        DataError: scores that are not such a grid.
        OptionError: a base below 1, or a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise OptionError(f"threshold = {threshold:g}: must be above 0 and at most 1.")
    grid = _grid(scores)
    factors = np.asarray([continuity(column >= threshold) for column in grid.T])
    return weighted_niah(grid * factors, depth_base, context_base)


def continuity(successes: ArrayLike) -> float:
    """How unbroken the successes of one context are over its depths: 0 for none, 1 for all, else 2^((1 - n) / 2).

    Args:
        successes: ``(depths,)`` of truth values.
    """
    column = np.asarray(successes, dtype=bool)
    if not column.any():
        return 0.0
    stretches = 1 + int((column[1:] != column[:-1]).sum())
    return float(2 ** ((1 - stretches) / 2))


def _grid(scores: ArrayLike) -> NDArray[np.float64]:
    grid = np.asarray(scores, dtype=np.float64)
    if grid.ndim != 2 or grid.size == 0 or not ((grid >= 0) & (grid <= 1)).all():
        raise DataError(f"Needle scores are a grid (depths, contexts) of values in [0, 1]; got shape {grid.shape}.")
    return grid


def _weights(shape: tuple[int, ...], depth_base: float, context_base: float) -> NDArray[np.float64]:
    for name, base in (("depth_base", depth_base), ("context_base", context_base)):
        if base < 1:
            raise OptionError(f"{name} = {base:g}: must be at least 1, so that deeper and longer count no less.")
    return np.outer(depth_base ** np.arange(shape[0]), context_base ** np.arange(shape[1]))
