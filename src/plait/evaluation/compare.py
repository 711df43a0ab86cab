"""Two models on the same samples: which is better, and could the difference be chance?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import DataError
from plait.evaluation.results import SAMPLES, results_in
from plait.statistics.intervals import bootstrap, mcnemar, sign_flips


@dataclass(frozen=True)
class Comparison:
    """One measurement of two models.

    Args:
        name: of the measurement.
        metric: what is compared.
        samples: how many both were measured on.
        first, second: mean scores.
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
    """All measurements that both models have, on the same samples.

    Args:
        first, second: folders of results, see :func:`plait.evaluation.session.results_folder`.

    Raises:
        DataError: a folder without results, no measurement in common, or none on the same samples.
    """
    a, b = _results(first), _results(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise DataError(
            f"{first} and {second} have no measurement in common: "
            f"{_names(a)} against {_names(b)}. Measure both with the same plait eval options."
        )
    reasons = {key: _differ(a[key], b[key]) for key in shared}
    refused = {a[key]["name"]: reason for key, reason in reasons.items() if reason is not None}
    found = [_pair(a[key], b[key]) for key in shared if reasons[key] is None]
    if not found:
        said = "; ".join(f"{name}: {reason}" for name, reason in list(refused.items())[:3])
        raise DataError(f"{first} and {second} cannot be compared. {said}")
    return Compared(found, refused)


def _differ(first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Why two results are not of the same samples; None where they are."""
    a, b = (result["more"].get(SAMPLES) for result in (first, second))
    if (a is None) != (b is None) or (a is None and "windows" in first["spec"]):
        return "one of the results does not say which texts it was measured on. Delete it and measure again."
    if a != b:
        cut = "Measure both without --limit" if "windows" in first["spec"] else "Choose models with one tokenizer"
        return f"the two tokenizers cut the samples differently, so these are not the same texts. {cut}."
    if len(first["per_sample"]) != len(second["per_sample"]):
        return (
            f"A has {len(first['per_sample'])} samples and B has {len(second['per_sample'])}. Measure both again with "
            "the same data."
        )
    return None


def _pair(first: Mapping[str, Any], second: Mapping[str, Any]) -> Comparison:
    a, b = first["per_sample"], second["per_sample"]
    differences = np.subtract(b, a)
    binary = set(a) | set(b) <= {0, 1}
    low, high = bootstrap(differences.tolist())
    return Comparison(
        name=first["name"],
        metric=first["metric"],
        samples=len(a),
        first=first["score"],
        second=second["score"],
        difference=float(differences.mean()),
        low=low,
        high=high,
        p=mcnemar(a, b) if binary else sign_flips(differences.tolist()),
        test="McNemar" if binary else "permutation",
    )


def _results(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by what was measured; the same thing measured of several states of a model: the newest."""
    found = {_identity(result["spec"]): result for result in results_in(folder)}
    if not found:
        raise DataError(f"{folder} has no results to compare; measure the model first: plait eval MODEL --suite recall")
    return found


def _identity(spec: Mapping[str, Any]) -> str:
    return repr(sorted(spec.items()))


def _names(results: Mapping[str, Mapping[str, Any]]) -> str:
    names: Iterator[str] = (result["name"] for result in results.values())
    return ", ".join(sorted(set(names)))
