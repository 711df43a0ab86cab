"""A measured number with what it may vary by."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Interval(BaseModel):
    """A mean with a 95 % interval, over ``n`` seeds, or over samples when there is one.

    :func:`plait.statistics.comparisons.interval` computes it.
    ``chance`` is what a uniform guess scores, for accuracies of which that is known.
    """

    mean: float
    low: float
    high: float
    n: int
    over: Literal["seeds", "samples", "none"]
    chance: float | None = None
