"""Made-up results in the form in which trials keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(metric: str, value: float, **fields: Any) -> dict[str, Any]:
    """One score; its interval reaches 0.01 down and 0.02 up."""
    per_sample: Sequence[float] = fields.pop("per_sample", [value, value])
    return {
        "metric": metric,
        "score": value,
        "low": value - 0.01,
        "high": value + 0.02,
        "interval": "bootstrap",
        "n": len(per_sample),
        "unit": "",
        "per_sample": list(per_sample),
        "weights": [],
        "groups": [],
        "more": {},
        "chance": None,
        **fields,
    }


def result(
    kind: str, name: str, *scores: dict[str, Any], trained: bool = True, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What was measured, with its scores."""
    about = {"name": name, "kind": kind, "trained": trained, "settings": dict(settings or {})}
    return {**about, "model": "m", "fingerprint": "", "seconds": 1.0, "versions": {}, "scores": list(scores)}


def task(name: str, values: Sequence[float], chance: float | None = None, **about: Any) -> dict[str, Any]:
    """The accuracy on some rows of a task."""
    mean = sum(values) / len(values)
    about.setdefault("settings", {"task": name.split()[0]})
    return result("task", name, score("accuracy", mean, per_sample=values, chance=chance), **about)


def mqar(length: int, pairs: int, values: Sequence[float]) -> dict[str, Any]:
    """The accuracy at one setting of MQAR."""
    settings = {"task": "mqar", "length": length, "pairs": pairs}
    return task(f"mqar length={length} pairs={pairs}", values, settings=settings)


def evaluation(*results: dict[str, Any], parameters: int = 1000) -> dict[str, Any]:
    """All that was measured of one model."""
    return {"parameters": parameters, "results": list(results), "unavailable": []}


def steady(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation without what depends on the clock: the same again of the same weights."""
    results = [
        {key: value for key, value in one.items() if key != "seconds"}
        for one in evaluation["results"]
        if one["kind"] != "decode"
    ]
    return {**evaluation, "results": results}
