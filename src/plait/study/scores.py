"""The scores of a track's tasks and suites as metrics: over its seeds, or over samples where there is one seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plait.statistics.comparisons import interval
from plait.statistics.interval import Interval
from plait.statistics.intervals import score_interval

#: Of one model, as :func:`plait.evaluation.evaluate` gives it.
Evaluation = Mapping[str, Any]


def task_metrics(track: str, evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The accuracy on the held-out rows of what a track was trained on.

    Args:
        track: its name.
        evaluations: one per seed.

    Returns:
        ``task:TRACK``, the mean over its tasks, each counted once; where there are several also ``task:TRACK@TASK``.
    """
    tables = [_by_name(_tasks(one)) for one in evaluations]
    columns = {name: [table[name] for table in tables] for name in tables[0]}
    metrics = {f"task:{track}@{name}": _metric(scores) for name, scores in columns.items()}
    if len(metrics) == 1:
        return {f"task:{track}": metric for metric in metrics.values()}
    return {f"task:{track}": _metric([_mean(list(table.values())) for table in tables]), **metrics}


def suite_metrics(track: str, evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The scores of a track's suites; what a model could not have is left out.

    Args:
        track: its name.
        evaluations: one per seed.

    Returns:
        ``suite:TRACK@NAME, UNIT`` for each measurement, such as ``suite:state@parity length=40, accuracy``.
    """
    tables = [_by_name([row for row in one.get("suites", []) if "score" in row]) for one in evaluations]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    return {
        f"suite:{track}@{name}, {tables[0][name]['metric']}": _metric([table[name] for table in tables])
        for name in common
    }


def _tasks(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The scores of all tasks that a model was trained on; MQAR has a form of its own."""
    recalled = [
        {"name": f"mqar {row['length']}x{row['pairs']}", "score": row["accuracy"], "per_sample": row["per_example"]}
        for row in evaluation["mqar"]
    ]
    return [*evaluation["tasks"], *recalled]


def _by_name(scores: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores by name; one that has the name of an earlier one gets a number."""
    table: dict[str, dict[str, Any]] = {}
    for score in scores:
        name, count = score["name"], 1
        while name in table:
            count += 1
            name = f"{score['name']} ({count})"
        table[name] = score
    return table


def _mean(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of several tasks, which have the same number of samples: the first ones together, and so on."""
    rows = [sum(row) / len(row) for row in zip(*(score["per_sample"] for score in scores), strict=True)]
    chances = [score.get("chance") for score in scores]
    chance = None if None in chances else sum(chances) / len(chances)  # type: ignore[arg-type]
    score = sum(one["score"] for one in scores) / len(scores)
    return {"score": score, "per_sample": rows, "chance": chance}


def _metric(scores: Sequence[Mapping[str, Any]]) -> Interval:
    """One measurement of every seed, over seeds, or over its samples when there is one seed."""
    first, chance = scores[0], scores[0].get("chance")
    if len(scores) > 1:
        bounds = {"bounds": (0.0, 1.0)} if first.get("metric", "accuracy") == "accuracy" else {}
        return interval([one["score"] for one in scores], "seeds", **bounds).model_copy(update={"chance": chance})
    n = len(first["per_sample"]) or first["more"].get("n", 1)
    low, high = (first["low"], first["high"]) if "low" in first else score_interval(first["per_sample"])
    return Interval(mean=first["score"], low=low, high=high, n=n, over="batches" if n > 1 else "none", chance=chance)
