"""Task sets of lm-eval: from jsonl files in a folder, without a network, or by their names on the hub.

A file ``NAME.jsonl`` has rows of one of three forms, as those of llm-foundry:

- ``{"query", "choices", "gold"}``: which choice continues the query best (``acc``, ``acc_norm``);
- ``{"context", "continuation"}``: whether the continuation is the greedy one (``acc``, ``perplexity``);
- ``{"context_options", "continuation", "gold"}``: after which context the continuation is likeliest (``acc``).

Prompts are those of lm-eval's tasks of the same name.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.tasks import TaskManager
from lm_eval.tasks.manager import TaskDict

from plait.errors import DataError, OptionError, nearest
from plait.evaluation.harness.names import FILES, check_names
from plait.files import parse_json, quoted, read_text

#: Sets whose prompt ends in a line "Answer:", which their rows leave out.
QUESTIONS = ("arc_challenge", "arc_easy", "boolq", "piqa", "sciq")


@dataclass(frozen=True)
class RowForm:
    """What the rows of a file hold, and how lm-eval scores them.

    Args:
        keys: of every row.
        task: lm-eval's configuration of a task with such rows.
        metrics: what is reported.
        wrong: what is wrong with a row that has the keys, or None.
    """

    keys: tuple[str, ...]
    task: dict[str, str]
    metrics: tuple[str, ...]
    wrong: Callable[[dict[str, Any]], str | None]


def _wrong_choices(row: dict[str, Any]) -> str | None:
    return _wrong_text(row, "query") or _wrong_options(row, "choices")


def _wrong_continuation(row: dict[str, Any]) -> str | None:
    return _wrong_text(row, "context") or _wrong_text(row, "continuation", empty=False)


def _wrong_contexts(row: dict[str, Any]) -> str | None:
    return _wrong_text(row, "continuation", empty=False) or _wrong_options(row, "context_options")


def _wrong_text(row: dict[str, Any], key: str, empty: bool = True) -> str | None:
    if not isinstance(row[key], str):
        return f"{key!r} is {row[key]!r}, not a text"
    return None if row[key] or empty else f"{key!r} is empty"


def _wrong_options(row: dict[str, Any], key: str) -> str | None:
    options, gold = row[key], row["gold"]
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str) and o for o in options):
        return f"{key!r} is {options!r}, not a list of at least two texts"
    if not isinstance(gold, int) or isinstance(gold, bool) or not 0 <= gold < len(options):
        return f"'gold' is {gold!r}, not a whole number from 0 to {len(options) - 1}, the place of the right one"
    return None


FORMS = (
    RowForm(
        ("query", "choices", "gold"),
        {
            "output_type": "multiple_choice",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
        },
        ("acc", "acc_norm"),
        _wrong_choices,
    ),
    RowForm(
        ("context", "continuation"),
        {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "{{' ' + continuation}}",
        },
        ("perplexity", "acc"),
        _wrong_continuation,
    ),
    RowForm(
        ("context_options", "continuation", "gold"),
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{gold}}",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
        },
        ("acc",),
        _wrong_contexts,
    ),
)


def check_hub_names(names: Sequence[str]) -> None:
    """Raise :class:`OptionError` where lm-eval has no such task; asks lm-eval itself, which takes seconds."""
    known = set(_all_tasks().all_tasks)
    for name in names:
        if name not in known:
            raise OptionError(f"lm-eval has no task {name!r}.{_close(name, known)}")


def hub_tasks(names: Sequence[str]) -> TaskDict:
    """Tasks and groups of lm-eval by name; their rows come from the hub or its local cache.

    Raises:
        OptionError: lm-eval has no such task.
        DataError: its rows cannot be had.
    """
    check_hub_names(names)
    try:
        return _all_tasks().load(list(names))
    except Exception as error:  # datasets, the hub and the tasks' own code raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"The rows of {', '.join(names)} cannot be loaded: {reason}. Without a network, give a folder of jsonl "
            "files (data_dir)."
        ) from error


def folder_tasks(names: Sequence[str], data_dir: Path, scratch: Path) -> TaskDict:
    """Tasks whose rows are jsonl files of a folder; nothing is fetched.

    Args:
        names: of tasks; ``NAME`` reads ``NAME.jsonl``.
        data_dir: the folder.
        scratch: an empty folder for what lm-eval reads; needed until the tasks have been run.

    Raises:
        OptionError: a task without a file.
        DataError: a file that cannot be read; the message names the line.
    """
    if not data_dir.is_dir():
        raise DataError(f"{data_dir} is no folder: data_dir holds one jsonl file for each task.")
    aliases = {file: name for name, file in FILES.items()}
    files = {aliases.get(path.stem, path.stem): path for path in sorted(data_dir.glob("*.jsonl"))}
    check_names(names, data_dir)
    for name in names:
        _write_task(name, files[name], scratch)
    with _offline():
        manager = TaskManager(include_path=scratch, include_defaults=False)
        return manager.load(list(names))


def read_rows(path: Path) -> tuple[RowForm, list[dict[str, Any]]]:
    """The rows of a file and their form, which the first row decides.

    Raises:
        DataError: a file that cannot be read or a row that is wrong; the message names the line.
    """
    lines = read_text(path).split("\n")
    rows: list[dict[str, Any]] = []
    form: RowForm | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{path}, line {number}")
        form = form or next((f for f in FORMS if isinstance(row, dict) and set(f.keys) <= set(row)), None)
        if form is None:
            forms = ", ".join(f"{{{', '.join(f.keys)}}}" for f in FORMS)
            raise DataError(f"{path}, line {number} has none of the forms {forms}: {line[:80]}")
        rows.append(_checked(row, form, f"{path}, line {number}"))
    if form is None:
        raise DataError(f"{path} has no rows.")
    return form, rows


def _checked(row: Any, form: RowForm, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place} is {quoted(row)}, not an object with {', '.join(form.keys)}.")
    missing = [key for key in form.keys if key not in row]
    wrong = f"{missing[0]!r} is missing" if missing else form.wrong(row)
    if wrong:
        raise DataError(f"{place}: {wrong}.")
    return {key: row[key] for key in form.keys}


def _write_task(name: str, path: Path, scratch: Path) -> None:
    """Write the checked rows and lm-eval's YAML file of one task."""
    form, rows = read_rows(path)
    data = scratch / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}, "cache_dir": str(scratch.resolve() / "cache")},
        "test_split": "test",
        **form.task,
        "metric_list": [{"metric": metric} for metric in form.metrics],
        "metadata": {"version": 1.0},
    }
    if name in QUESTIONS:
        task["doc_to_text"] = "{{query.rstrip()}}\nAnswer:"
    (scratch / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


@functools.cache
def _all_tasks() -> TaskManager:
    """Every task that comes with lm-eval; finding them takes seconds."""
    return TaskManager()


def _close(name: str, known: set[str]) -> str:
    """As :func:`nearest`, for lists too long to print."""
    hint = nearest(name, known)
    return hint if hint.startswith(" Did") else " `lm-eval ls tasks` lists them."


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keep ``datasets`` off the network."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
