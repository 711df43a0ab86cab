"""Two models on the same samples: which is better, and could the difference be chance?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import DataError
from plait.evaluation.intervals import bootstrap, mcnemar, sign_flips
from plait.training.checkpoint import read_json


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


def compare(first: Path, second: Path) -> list[Comparison]:
    """All measurements that both models have, on the same samples.

    Args:
        first, second: folders of results, see :func:`plait.evaluation.session.results_folder`.

    Raises:
        DataError: a folder without results, or no measurement in common.
    """
    a, b = _results(first), _results(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise DataError(
            f"{first} and {second} have no measurement in common: "
            f"{_names(a)} against {_names(b)}. Measure both with the same plait eval options."
        )
    return [_pair(a[key], b[key]) for key in shared]


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
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = {}
    for path in files:
        result = read_json(path)
        if isinstance(result, dict) and {"per_sample", "spec"} <= result.keys():
            found[_identity(result["spec"])] = result
    if not found:
        raise DataError(f"{folder} has no results to compare; measure the model first: plait eval MODEL --suite recall")
    return found


def _identity(spec: Mapping[str, Any]) -> str:
    return repr(sorted(spec.items()))


def _names(results: Mapping[str, Mapping[str, Any]]) -> str:
    names: Iterator[str] = (result["name"] for result in results.values())
    return ", ".join(sorted(set(names)))
