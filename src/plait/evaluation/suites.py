"""What is asked for by name as measurements: suites, tasks, benchmarks and lm-eval's tasks, for one model.

A *suite* is a named set of measurements. Tasks and benchmarks say in the catalogue to which ones they belong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait import catalog
from plait.benchmarks import Benchmark
from plait.catalog import Method
from plait.data.tasks import Task
from plait.errors import DataError, OptionError, PlaitError, nearest
from plait.evaluation.harness.measurement import HarnessMeasurement
from plait.evaluation.harness.names import folder_names, harness_folder, require_lm_eval
from plait.evaluation.measurement import Measurement
from plait.evaluation.prompts import BenchmarkMeasurement
from plait.evaluation.subject import Subject
from plait.evaluation.tasks import TaskMeasurement
from plait.evaluation.texts import TextMeasurement
from plait.evaluation.trained import label
from plait.runs.config import MeasureSection

#: lm-eval's tasks of the commonsense average in "A Systematic Analysis of Hybrid Linear Attention" (2507.06457).
HARNESS = (
    "wikitext",
    "lambada_openai",
    "piqa",
    "hellaswag",
    "winogrande",
    "arc_easy",
    "arc_challenge",
    "boolq",
    "sciq",
    "copa",
    "openbookqa",
)

#: Window of the suite ``lm`` where no length is asked for.
TEXT_LENGTH = 512


@dataclass(frozen=True)
class Wish:
    """What a user asks of tasks and benchmarks.

    Args:
        lengths: of the rows or prompts; none: as the model was trained, or as the task sets it. The harness reads at
            most the longest of them at once.
        limit: samples per measurement, windows of a text; None: 500, and 16 pieces of a text.
        data_dir: folder with files of benchmarks that need some.
        options: further options, for every task or benchmark that knows them.
    """

    lengths: Sequence[int] = ()
    limit: int | None = None
    data_dir: Path | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Unavailable:
    """A measurement of a suite that this model or this machine cannot have, with the reason."""

    name: str
    reason: str


def measurements_of(section: MeasureSection, subject: Subject) -> list[Measurement | Unavailable]:
    """The measurements that a run file or a command asks for.

    Raises:
        OptionError: no such suite or task.
        PlaitError: something that was named, not only part of a suite, cannot be measured.
    """
    data_dir = None if section.data_dir is None else Path(section.data_dir)
    if data_dir is not None and not data_dir.is_dir():
        raise DataError(f"The data folder {data_dir} does not exist.")
    wish = Wish(section.lengths, section.limit, data_dir, section.options)
    if section.suite is not None:
        return suite(section.suite, subject, wish)
    measurements: list[Measurement | Unavailable] = []
    for task in section.harness:
        harness = HarnessMeasurement(task, harness_folder(wish.data_dir), wish.limit, max(wish.lengths, default=None))
        harness.check(subject)
        measurements.append(harness)
    for name in section.tasks:
        measurements += named(name, subject, wish)
    return measurements


def suite(name: str, subject: Subject, wish: Wish) -> list[Measurement | Unavailable]:
    """The measurements of a suite; what cannot be measured stands in the list with its reason.

    Args:
        name: a suite that tasks and benchmarks of the catalogue belong to, ``lm`` (the ``*.txt`` files of the data
            folder, or without one the standard library of Python), ``harness`` or ``all``.
        subject: the model.
        wish: lengths, samples, data.

    Raises:
        OptionError: no such suite.
    """
    if name == catalog.ALL_SUITES:
        return _each_once([part for each in catalog.suites() if each != name for part in suite(each, subject, wish)])
    if name not in catalog.suites():
        raise OptionError(f"There is no suite {name!r}.{nearest(name, catalog.suites())}")
    if name in ("lm", "harness"):
        try:
            wanted = list(_texts(wish) if name == "lm" else _harness(wish))
        except PlaitError as error:
            return [Unavailable(name, str(error))]
        return [_checked(measurement, subject) for measurement in wanted]
    parts: list[Measurement | Unavailable] = []
    for method in catalog.methods():
        if name not in method.suites:
            continue
        for length in wish.lengths or (None,):
            try:
                parts.append(_measurement(method, length, subject, wish))
            except PlaitError as error:
                title = label(method.name, {} if length is None else {"length": length})
                parts.append(Unavailable(title, str(error)))
    return _each_once(parts)  # what knows no length, or belongs to several suites


def _each_once(parts: Sequence[Measurement | Unavailable]) -> list[Measurement | Unavailable]:
    """The same measurement once; a task and a benchmark of one name are two."""
    return list({(getattr(part, "kind", part), part.name): part for part in parts}.values())


def named(name: str, subject: Subject, wish: Wish) -> list[Measurement]:
    """The measurements of one task or benchmark that was asked for by name, one per length.

    Raises:
        OptionError: neither a task nor a benchmark has this name.
        PlaitError: it cannot be measured; the message says why.
    """
    kinds = [kind for kind in ("task", "benchmark") if name in catalog.names(kind)]
    if not kinds:
        known = catalog.names("task") + catalog.names("benchmark")
        raise OptionError(f"There is no task or benchmark {name!r}.{nearest(name, known)}")
    method = catalog.get(name, kinds[-1] if subject.tokenizer is not None else kinds[0])
    return [_measurement(method, length, subject, wish) for length in wish.lengths or (None,)]


def _measurement(method: Method, length: int | None, subject: Subject, wish: Wish) -> Measurement:
    """One task or benchmark at one length, checked."""
    kind: type[Task] | type[Benchmark] = method.load()
    known = {field.name: field for field in dataclasses.fields(kind)}
    options: dict[str, Any] = {}
    if issubclass(kind, Benchmark):
        options |= _files(method.name, kind, wish)
        if wish.limit is not None:
            options["samples"] = wish.limit
        if length is not None and "length" in known:
            options["length"] = length
    else:
        options |= trained_options(subject, method.name)
        default: Any = known["vocab_size"].default
        if default:  # else the task's own alphabet decides
            options.setdefault("vocab_size", min(subject.vocab_size, default))
        if length is not None:
            options |= kind.at_length(length)
    options |= {key: value for key, value in wish.options.items() if key in known}
    title = label(method.name, {key: options[key] for key in ["length", *wish.options] if key in options})
    measurement: Measurement
    if issubclass(kind, Benchmark):
        measurement = BenchmarkMeasurement(title, kind.parse(method.name, options))
    else:
        measurement = TaskMeasurement(title, kind.parse(method.name, options), wish.limit or 500)
    measurement.check(subject)
    return measurement


def _texts(wish: Wish) -> Iterator[Measurement]:
    files = [] if wish.data_dir is None else sorted(wish.data_dir.glob("*.txt"))
    for source in [str(path) for path in files] or ["python-stdlib"]:
        for length in wish.lengths or (TEXT_LENGTH,):
            yield TextMeasurement(source, length, wish.limit)


def _harness(wish: Wish) -> Iterator[Measurement]:
    require_lm_eval()
    folder = harness_folder(wish.data_dir)
    for task in HARNESS if folder is None else folder_names(folder):
        yield HarnessMeasurement(task, folder, wish.limit, max(wish.lengths, default=None))


def _checked(measurement: Measurement, subject: Subject) -> Measurement | Unavailable:
    try:
        measurement.check(subject)
    except PlaitError as error:
        return Unavailable(measurement.name, str(error))
    return measurement


def trained_options(subject: Subject, name: str) -> dict[str, Any]:
    """The options of a task that the model was trained on, those of the latest part of a mixture; empty for others."""
    data = subject.data
    if data is None:
        return {}
    if data.task == name:
        return {"length": data.length, **data.options}
    parts = [part for part in data.mixture if part.task == name]
    if not parts:
        return {}
    latest = max(parts, key=lambda part: part.end)
    return {"length": latest.length or data.length, **latest.options}


def _files(name: str, kind: type[Benchmark], wish: Wish) -> dict[str, str]:
    """Paths of a benchmark's files, where they lie under the data folder.

    Raises:
        DataError: an option that has no default is neither there nor given.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    paths: dict[str, str] = {}
    for option, places in kind.files.items():
        if option in wish.options:
            continue
        present = [] if wish.data_dir is None else [wish.data_dir / place for place in places]
        present = [path for path in present if path.exists()]
        default = fields[option].default
        if present:
            paths[option] = str(present[0])
        elif not default or default is dataclasses.MISSING:
            raise DataError(
                f"{name} needs its {option}: a data folder with {' or '.join(places)} (--data-dir), or a path "
                f"(--option {option}=PATH)."
            )
    return paths
