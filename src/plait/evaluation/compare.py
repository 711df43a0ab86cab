"""Two models on the same samples: which is better, and could the difference be chance?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import DataError
from plait.evaluation.results import results_in
from plait.evaluation.score import SAMPLES
from plait.statistics.intervals import bootstrap, mcnemar, sign_flips


@dataclass(frozen=True)
class Comparison:
    """One score of two models.

    Args:
        name: of the measurement.
        metric: what is compared.
        samples: how many both were measured on.
        first, second: the scores.
        difference: ``second - first``, with its 95 % bootstrap interval ``low`` to ``high`` over paired samples.
        p: of no difference; McNemar's exact test for right or wrong, else a paired permutation test.
        test: which one.
    """

    name: str
    metric: str
    samples: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    test: str


@dataclass(frozen=True)
class Compared:
    """Two models.

    Args:
        comparisons: one for each measurement that both have on the same samples.
        refused: name of a measurement -> why its samples cannot be compared.
    """

    comparisons: list[Comparison]
    refused: dict[str, str]


def compare(first: Path, second: Path) -> Compared:
    """All scores that both models have, on the same samples.

    Args:
        first, second: folders of results, see :func:`plait.evaluation.session.results_folder`.

    Raises:
        DataError: a folder without results, no measurement in common, or none on the same samples.
    """
    a, b = _scores(first), _scores(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise DataError(
            f"{first} and {second} have no measurement in common: "
            f"{_names(a)} against {_names(b)}. Measure both with the same plait eval options."
        )
    comparisons: list[Comparison] = []
    refused: dict[str, str] = {}
    for key in shared:
        (name, one), (_, other) = a[key], b[key]
        if not one["per_sample"] and not other["per_sample"]:
            continue  # decoding, and what lm-eval gives as a total
        reason = _differ(one, other)
        if reason is None:
            comparisons.append(_pair(name, one, other))
        else:
            refused.setdefault(name, reason)
    if not comparisons:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise DataError(f"{first} and {second} cannot be compared. {said or 'No score of theirs has samples.'}")
    return Compared(comparisons, refused)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Why two scores are not of the same samples; None where they are."""
    if first["more"].get(SAMPLES) != second["more"].get(SAMPLES):
        return (
            "the two tokenizers cut the samples differently, so these are not the same texts. Measure both without "
            "--limit, or choose models with one tokenizer."
        )
    if len(first["per_sample"]) != len(second["per_sample"]):
        return (
            f"A has {len(first['per_sample'])} samples and B has {len(second['per_sample'])}. Measure both again with "
            "the same data."
        )
    if first["weights"] != second["weights"]:
        return "the two tokenizers count different tokens in the same texts. Compare bits per byte."
    return None


def _pair(name: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    a, b = first["per_sample"], second["per_sample"]
    weights = np.asarray(first["weights"] or np.ones(len(a)))
    differences = np.subtract(b, a)
    binary = set(a) | set(b) <= {0, 1}
    low, high = bootstrap(differences.tolist(), weights=weights.tolist())
    return Comparison(
        name=name,
        metric=first["metric"],
        samples=len(a),
        first=first["score"],
        second=second["score"],
        difference=float(np.average(differences, weights=weights)),
        low=low,
        high=high,
        p=mcnemar(a, b) if binary else sign_flips((differences * weights).tolist()),
        test="McNemar" if binary else "permutation",
    )


def _scores(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name and score by what was measured; the same thing measured of several states of a model: the newest."""
    results = results_in(folder)
    if not results:
        raise DataError(f"{folder} has no results to compare; measure the model first: plait eval MODEL --suite recall")
    return {
        repr((result["kind"], sorted(result["settings"].items()), score["metric"])): (result["name"], score)
        for result in results
        for score in result["scores"]
    }


def _names(scores: Mapping[str, tuple[str, Any]]) -> str:
    return ", ".join(sorted({name for name, _ in scores.values()}))
