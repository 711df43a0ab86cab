"""Measures one model, thing by thing: each result is written at once, and a second call skips what is there."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plait.errors import DataError, PlaitError
from plait.evaluation.batching import Batches
from plait.evaluation.measurement import Advance, Measurement, silent
from plait.evaluation.progress import Bar
from plait.evaluation.results import read_result
from plait.evaluation.subject import Subject, measurement_key
from plait.files.locks import sole_writer
from plait.files.writing import clean, write_json
from plait.provenance import provenance
from plait.runs.folder import RUN_FILE

_log = logging.getLogger("plait")

#: Folder of the results, beside the model.
RESULTS_FOLDER = "evaluation"


def measure(
    subject: Subject,
    measurements: Sequence[Measurement],
    folder: Path,
    batches: Batches,
    *,
    progress: bool = True,
    title: str | None = None,
) -> Iterator[dict[str, Any]]:
    """The result of each measurement, from ``folder`` or measured now.

    Args:
        subject: the model.
        measurements: what is measured.
        folder: one JSON file for each result.
        batches: rows at a time.
        progress: show on stderr what is measured, how fast, and the time left.
        title: of the progress; None: the number and name of the measurement.

    Yields:
        A result, see :mod:`plait.evaluation.results`; of a measurement that failed ``name`` and ``reason``.

    Raises:
        FolderInUse: something has to be measured, and another process writes in ``folder``.
    """
    with ExitStack() as held:
        yield from _each(subject, measurements, folder, batches, progress, title, held)


def _each(
    subject: Subject,
    measurements: Sequence[Measurement],
    folder: Path,
    batches: Batches,
    progress: bool,
    title: str | None,
    held: ExitStack,
) -> Iterator[dict[str, Any]]:
    writing = False
    for number, measurement in enumerate(measurements, start=1):
        path = (
            folder / f"{file_name(measurement.name)}-{measurement_key(subject.fingerprint, measurement.settings)}.json"
        )
        if measurement.repeatable and (kept := _kept(path)) is not None:
            yield kept
            continue
        if not writing:
            held.enter_context(sole_writer(folder, "measuring"))
            clean(folder)
            writing = True
        try:
            shown = title or f"[{number}/{len(measurements)}] {measurement.name}"
            with Bar(shown, measurement.samples, measurement.unit, progress) as bar:
                result = result_of(measurement, subject, batches, bar.advance)
        except PlaitError as error:  # found in the middle of its data; the others are measured all the same
            yield {"name": measurement.name, "reason": str(error)}
            continue
        write_json(path, result, sealed=True)
        yield read_result(path)


def _kept(path: Path) -> dict[str, Any] | None:
    """A result of an earlier call; one that cannot be read is none, with a warning."""
    if not path.exists():
        return None
    try:
        return read_result(path)
    except DataError as error:
        _log.warning("%s. Measuring it again.", str(error).rpartition(":")[0])
        return None


def result_of(
    measurement: Measurement, subject: Subject, batches: Batches | None = None, advance: Advance = silent
) -> dict[str, Any]:
    """Measure now; the result, ready for JSON, see :mod:`plait.evaluation.results`."""
    start = time.perf_counter()
    scores = measurement.measure(subject, batches, advance)
    return {
        "name": measurement.name,
        "kind": measurement.kind,
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "settings": measurement.settings,
        "scores": [dataclasses.asdict(score) for score in scores],
        "seconds": time.perf_counter() - start,
        **provenance(),
    }


def results_folder(name: str) -> Path:
    """Where the results of the model ``name`` are kept: in its folder, or below ``runs`` for a name on the hub.

    A folder that holds results and no model is taken as it is.
    """
    place = Path(name)
    if place.is_dir() and any(place.glob("*.json")) and not (place / "config.json").exists():
        inside = place / RESULTS_FOLDER
        return inside if inside.is_dir() or (place / RUN_FILE).exists() else place
    return (place if place.is_dir() else Path("runs") / file_name(name)) / RESULTS_FOLDER


def file_name(text: str) -> str:
    """``text`` as the name of a file: letters, digits and ``.=_-``, at most 120 of them."""
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", text)[:120]
