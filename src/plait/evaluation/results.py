"""Reads the results that ``plait eval`` has written; each says in its file what was measured and how."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from plait.errors import DataError, TrainingError
from plait.files.writing import read_back

#: Under ``more`` of a result whose samples depend on the tokenizer: the digest of their texts.
SAMPLES = "samples_sha256"


class Result(BaseModel):
    """The fields of a result that others read; see :class:`~plait.evaluation.measurements.Score`."""

    model_config = ConfigDict(extra="allow")
    name: str
    model: str
    spec: dict[str, Any]
    metric: str
    score: float
    low: float
    high: float
    per_sample: list[float]
    groups: list[dict[str, Any]] = []
    more: dict[str, Any] = {}
    chance: float | None = None
    interval: str = "none"


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file; fields that older versions did not write have their defaults.

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
    return [_validated(content, path) for path, content in contents if isinstance(content, dict) and "spec" in content]


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
    found = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8")
        found.update(f"{len(data)}\n".encode() + data)
    return found.hexdigest()
