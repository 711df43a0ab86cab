"""The figures of a frontier: a task's score against the budget, by policy."""

from __future__ import annotations

from collections.abc import Sequence

from plait.drawing.lines import Line, LinesFigure
from plait.evaluation.frontier import DENSE, Point
from plait.interval import Interval


def figures(points: Sequence[Point]) -> list[LinesFigure]:
    """A chart for each task: the score against the budget, a line for each policy."""
    budgets = sorted({point.budget for point in points if point.policy != DENSE})
    charts = []
    for task in dict.fromkeys(point.task for point in points):
        mine = [point for point in points if point.task == task]
        lines = []
        for policy in dict.fromkeys(point.policy for point in mine):
            found = {point.budget: point for point in mine if point.policy == policy}
            values = [
                _interval(found[1.0]) if policy == DENSE else _interval(found[budget]) if budget in found else None
                for budget in budgets
            ]
            lines.append(Line(policy, values, baseline=policy == DENSE))
        label = f"{task}: score against the budget, by policy"
        names = [f"{budget:.3g}" for budget in budgets]
        charts.append(LinesFigure(task, names, "keys per query, as a share of the text", lines, label, (0.0, 1.0)))
    return charts


def _interval(point: Point) -> Interval:
    return Interval(mean=point.score, low=point.low, high=point.high, n=1, over="batches")
