"""What the trials of a track measured as metrics: over its seeds, or over samples where there is one seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from plait.statistics.comparisons import interval
from plait.statistics.interval import Interval
from plait.statistics.intervals import score_interval

#: Of one model, as :func:`plait.evaluation.run.evaluate` gives it.
Evaluation = Mapping[str, Any]

#: Metric of a text -> the study's name of it.
TEXT_METRICS = {
    "bits per byte": "bits_per_byte",
    "loss": "loss",
    "loss on AR hits": "ar_loss",
    "loss on other tokens": "other_loss",
}


def text_metrics(evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The losses on the held-out text of a track: ``loss``, ``bits_per_byte``, ``ar_loss`` and ``other_loss``.

    Args:
        evaluations: one per seed.
    """
    tables = [
        {score["metric"]: score for result in _trained(evaluation, "text")[:1] for score in result["scores"]}
        for evaluation in evaluations
    ]
    return {
        name: _metric([table[metric] for table in tables])
        for metric, name in TEXT_METRICS.items()
        if all(metric in table for table in tables)
    }


def recall_metrics(evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The accuracy at each setting of MQAR, ``recall@LENGTHxPAIRS``, and their mean, ``recall``.

    Args:
        evaluations: one per seed.
    """
    tables = [
        {
            f"recall@{result['settings']['length']}x{result['settings']['pairs']}": result["scores"][0]
            for result in _trained(evaluation, "task")
            if result["settings"]["task"] == "mqar"
        }
        for evaluation in evaluations
    ]
    metrics = {name: _metric([table[name] for table in tables]) for name in tables[0]}
    return {**metrics, "recall": _metric([_mean(list(table.values())) for table in tables])} if metrics else {}


def task_metrics(track: str, evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The accuracy on the held-out rows of the tasks that a track was trained on.

    Args:
        track: its name.
        evaluations: one per seed.

    Returns:
        ``task:TRACK``, the mean over its tasks, each counted once; where there are several also ``task:TRACK@NAME``.
    """
    tables = [_by_name(_firsts(_trained(evaluation, "task"))) for evaluation in evaluations]
    metrics = {f"task:{track}@{name}": _metric([table[name] for table in tables]) for name in tables[0]}
    if not metrics:
        return {}
    if len(metrics) == 1:
        return {f"task:{track}": metric for metric in metrics.values()}
    return {f"task:{track}": _metric([_mean(list(table.values())) for table in tables]), **metrics}


def further_metrics(track: str, evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """The scores of what was measured beside a track's own data; what a model could not have is left out.

    Args:
        track: its name.
        evaluations: one per seed.

    Returns:
        ``suite:TRACK@NAME, METRIC`` for each measurement, such as ``suite:state@parity length=40, accuracy``.
    """
    tables = [
        _by_name(
            _firsts(result for result in evaluation["results"] if not result["trained"] and result["kind"] != "decode")
        )
        for evaluation in evaluations
    ]
    common = [name for name in tables[0] if all(name in table for table in tables)]
    return {
        f"suite:{track}@{name}, {tables[0][name]['metric']}": _metric([table[name] for table in tables])
        for name in common
    }


def decode_metrics(evaluations: Sequence[Evaluation]) -> dict[str, Interval]:
    """Tokens a second after each context, ``decode@CONTEXT``, over seeds.

    Args:
        evaluations: of one track, one per seed.
    """
    speeds: dict[int, list[float]] = defaultdict(list)
    for evaluation in evaluations:
        for result in evaluation["results"]:
            if result["kind"] == "decode":
                speeds[result["settings"]["context"]].append(result["scores"][0]["score"])
    return {f"decode@{context}": interval(values, "seeds", (0.0, math.inf)) for context, values in speeds.items()}


def text_baselines(evaluation: Evaluation) -> dict[str, Any] | None:
    """What compressors and counts make of the held-out text; None where there is no such text."""
    for result in _trained(evaluation, "text"):
        baselines: dict[str, Any] | None = result["scores"][0]["more"].get("baselines")
        return baselines
    return None


def _trained(evaluation: Evaluation, kind: str) -> list[dict[str, Any]]:
    """Results of one kind on what the model was trained on."""
    return [result for result in evaluation["results"] if result["trained"] and result["kind"] == kind]


def _firsts(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The most telling score of each result, with the name of the measurement."""
    return [{"name": result["name"], **result["scores"][0]} for result in results]


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
    chances = [score["chance"] for score in scores]
    low, high = score_interval(rows)
    return {
        "metric": "accuracy",
        "score": sum(score["score"] for score in scores) / len(scores),
        "low": low,
        "high": high,
        "n": len(rows),
        "chance": None if None in chances else sum(chances) / len(chances),
    }


def _metric(scores: Sequence[Mapping[str, Any]]) -> Interval:
    """One score of every seed: over seeds, or over its samples when there is one seed."""
    first = scores[0]
    if len(scores) > 1:
        bounds = {"accuracy": (0.0, 1.0)}.get(first["metric"], (0.0, math.inf))
        several = interval([score["score"] for score in scores], "seeds", bounds)
        return several.model_copy(update={"chance": first["chance"]})
    over: Literal["samples", "none"] = "samples" if first["n"] > 1 else "none"
    return Interval(
        mean=first["score"], low=first["low"], high=first["high"], n=first["n"], over=over, chance=first["chance"]
    )
