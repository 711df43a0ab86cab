"""Results: what was measured of which model, with its scores, as they stand in files and in ``--json``.

A result is a mapping with ``name``, ``kind``, ``model``, ``fingerprint``, ``settings``, ``scores`` (each the fields of
:class:`~plait.evaluation.score.Score`), ``seconds`` and ``versions``. ``plait eval`` writes one file for each; the
``evaluation`` of a run's ``result.json`` and of a study's trial holds a list of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from plait.errors import DataError, TrainingError
from plait.files.writing import read_back


class StoredScore(BaseModel):
    """The fields of :class:`~plait.evaluation.score.Score`."""

    model_config = ConfigDict(extra="forbid")
    metric: str
    score: float
    low: float
    high: float
    interval: str
    n: int
    unit: str
    per_sample: list[float]
    weights: list[float]
    groups: list[dict[str, Any]]
    more: dict[str, Any]
    chance: float | None


class Result(BaseModel):
    """The fields of a result that others read."""

    model_config = ConfigDict(extra="allow")
    name: str
    kind: str
    model: str
    settings: dict[str, Any]
    scores: list[StoredScore] = Field(min_length=1)


def score_of(result: Mapping[str, Any], metric: str | None = None) -> dict[str, Any] | None:
    """One score of a result.

    Args:
        result: as in a file.
        metric: which; None: the first, which is the most telling one.

    Returns:
        The score, or None where the result has no such metric.
    """
    return next((score for score in result["scores"] if metric in (None, score["metric"])), None)


def by_name(results: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The scores of one metric, by the names of the measurements that give it."""
    scores = {result["name"]: score_of(result, metric) for result in results}
    return {name: score["score"] for name, score in scores.items() if score is not None}


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file.

    Raises:
        DataError: the file is damaged, or lacks a field or holds another kind of value; names both.
    """
    return _validated(_content(path), path)


def results_in(folder: Path) -> list[dict[str, Any]]:
    """All results in a folder, the oldest first; JSON files of another kind are passed over.

    Raises:
        DataError: see :func:`read_result`.
    """
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    contents = [(path, _content(path)) for path in files]
    return [
        _validated(content, path) for path, content in contents if isinstance(content, dict) and "scores" in content
    ]


_REMEDY = "delete the file and measure again with plait eval."
_OTHER = " Delete the run's folder or restore the file."  # what is said of a file of a run


def _content(path: Path) -> Any:
    try:
        return read_back(path)
    except TrainingError as error:
        raise DataError(f"{str(error).partition(';')[0].removesuffix(_OTHER).rstrip('.')}: {_REMEDY}") from None


def _validated(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a result of plait eval: {_REMEDY}")
    try:
        return Result.model_validate(content).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        said = "is missing" if first["type"] == "missing" else f"is wrong ({first['msg']})"
        raise DataError(
            f"{path} is not a result that this version reads, its field {field!r} {said}: {_REMEDY}"
        ) from None


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order, to tell whether two models read the same."""
    sha256 = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8")
        sha256.update(f"{len(data)}\n".encode() + data)
    return sha256.hexdigest()
