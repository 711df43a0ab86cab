"""The figures of a frontier: a task's score against what each policy really scored and held."""

from __future__ import annotations

from collections.abc import Sequence

from plait.drawing.panels import Mark, Panels, Trace
from plait.evaluation.frontier import DENSE, Point
from plait.statistics.interval import Interval

COSTS = ("query-key pairs in the prefill", "query-key pairs in decoding", "bytes of the cache")


def figures(points: Sequence[Point]) -> list[Panels]:
    """Three panels for each task: the score against pairs in the prefill, pairs in decoding and bytes of the cache."""
    charts = []
    for task in dict.fromkeys(point.task for point in points):
        mine = [point for point in points if point.task == task]
        traces = []
        for policy in dict.fromkeys(point.policy for point in mine):
            own = sorted((point for point in mine if point.policy == policy), key=lambda point: point.budget)
            traces.append(Trace(policy, [_mark(point) for point in own], baseline=policy == DENSE))
        label = f"{task}: score against pairs in the prefill, pairs in decoding and bytes of the cache, by policy"
        charts.append(
            Panels(
                task,
                f"Score of {task} against shares of what dense attention costs, as measured.",
                COSTS,
                traces,
                label,
            )
        )
    return charts


def _mark(point: Point) -> Mark:
    named = point.policy if point.policy == DENSE else f"{point.policy}, budget {point.budget:g}"
    shares = (("prefill", point.prefill), ("decode", point.decode), ("cache", point.held))
    costs = ", ".join(f"{name} {value:.1%}" for name, value in shares if value is not None)
    said = f"{named}: score {point.score:.3f} ({point.low:.3f} to {point.high:.3f}); {costs} of dense"
    interval = Interval(mean=point.score, low=point.low, high=point.high, n=1, over="samples")
    return Mark((point.prefill, point.decode, point.held), interval, said)
