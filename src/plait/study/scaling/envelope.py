"""The lowest loss for each amount of compute, over runs of several sizes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Point:
    """A loss that some size had after some compute.

    Args:
        flops: of training so far.
        loss: in nats per token.
        parameters: of the size, without embedding and head.
        tokens: seen so far.
        size: its name.
    """

    flops: float
    loss: float
    parameters: int
    tokens: float
    size: str


@dataclass(frozen=True)
class Run:
    """The loss log of one model.

    Args:
        size: name of the size; runs of the same size differ in the seed.
        seed: of the run.
        points: of the run, in the order of training.
    """

    size: str
    seed: int
    points: tuple[Point, ...]


def smoothed(runs: Sequence[Run], per_decade: int, skip_tokens: float = 0) -> list[Point]:
    """One point for each size and bin of compute: the mean over the records of all its runs in that bin.

    The loss of a few batches is noisy, and a minimum over noisy values picks the luckiest batch. For the same reason a
    run's last bin is left out where it has fewer records than the one before: the run ended inside it.

    Args:
        runs: of any sizes and seeds; a run that is given twice counts twice.
        per_decade: bins per factor of ten in compute.
        skip_tokens: points up to here are left out.
    """
    groups: dict[tuple[str, int], list[Point]] = defaultdict(list)
    for run in runs:
        for place, points in _whole_bins(run, per_decade):
            groups[run.size, place] += points
    means = [_mean(group) for group in groups.values()]
    return [point for point in means if point.tokens > skip_tokens]


def compute_envelope(points: Iterable[Point], per_decade: int) -> list[Point]:
    """In each bin of compute the point with the lowest loss, as long as it is lower than all before it.

    Args:
        points: of all sizes, in any order.
        per_decade: bins per factor of ten in compute.

    Returns:
        Some of the points, at most one a bin, compute rising and loss falling. Sizes that are nowhere the best are
        not among them.
    """
    best: dict[int, Point] = {}
    for point in points:
        place = _bin(point.flops, per_decade)
        if place not in best or point.loss < best[place].loss:
            best[place] = point
    envelope: list[Point] = []
    for _, point in sorted(best.items()):
        if not envelope or point.loss < envelope[-1].loss:
            envelope.append(point)
    return envelope


def changes(envelope: Sequence[Point], points: Iterable[Point]) -> tuple[int, int]:
    """How often the best size changes along an envelope, and how often only because the runs of the old one had ended.

    A change of the second kind says how long the runs were, not which size is the best.

    Args:
        envelope: of :func:`compute_envelope`.
        points: what it was taken from.

    Returns:
        All changes, and those of the second kind.
    """
    ends: dict[str, float] = {}
    for point in points:
        ends[point.size] = max(point.flops, ends.get(point.size, 0.0))
    pairs = [(old, new) for old, new in pairwise(envelope) if old.size != new.size]
    return len(pairs), sum(ends[old.size] == old.flops for old, _ in pairs)


def _bin(flops: float, per_decade: int) -> int:
    return math.floor(math.log10(flops) * per_decade)


def _whole_bins(run: Run, per_decade: int) -> list[tuple[int, list[Point]]]:
    bins: dict[int, list[Point]] = defaultdict(list)
    for point in run.points:
        bins[_bin(point.flops, per_decade)].append(point)
    whole = sorted(bins.items())
    if len(whole) > 1 and len(whole[-1][1]) < len(whole[-2][1]):
        whole.pop()
    return whole


def _mean(group: Sequence[Point]) -> Point:
    count = len(group)
    return Point(
        flops=sum(point.flops for point in group) / count,
        loss=sum(point.loss for point in group) / count,
        parameters=group[0].parameters,
        tokens=sum(point.tokens for point in group) / count,
        size=group[0].size,
    )
