"""Questions from files: rows of jsonl or of a data set of the hub, and SQuAD's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from plait.data.records import read_records
from plait.errors import DataError
from plait.extras import install_command
from plait.files import foreign, read_json
from plait.hub import check_name


@dataclass(frozen=True)
class Question:
    """A question on a paragraph.

    Args:
        context: the paragraph.
        question: what is asked.
        answers: each is right.
    """

    context: str
    question: str
    answers: tuple[str, ...]


@cache
def read_rows(source: str, fields: tuple[str, ...], split: str) -> Sequence[Mapping[str, Any]]:
    """All rows of a jsonl file, or of a data set of the hub (or a local folder of one).

    Args:
        source: path of a file, else ``NAME`` on the hub or a folder that the package datasets can load.
        fields: that each row must have.
        split: of a data set of the hub; a file is one split.

    Raises:
        DataError: a row without a field, a broken file, no network; the message names the place.
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = list(read_records(path, fields[0]))
    elif path.suffix in (".jsonl", ".json", ".parquet"):
        raise DataError(f"{source} does not exist.")
    else:
        rows = [
            (f"{source}, split {split}, row {number}", row) for number, row in enumerate(_hub(source, fields, split))
        ]
    for where, row in rows:
        for field in fields:
            if field not in row:
                raise DataError(f"{where} has no field {field!r}; found {', '.join(row) or 'none'}.")
    if not rows:
        raise DataError(f"{source} has no rows.")
    return [row for _, row in rows]


def _hub(source: str, fields: tuple[str, ...], split: str) -> Any:
    wanted = f"rows with the fields {', '.join(fields)}"
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"The data set {source!r} needs the package datasets: {install_command('hub')}; or give a jsonl file of "
            f"{wanted}."
        ) from None
    if not Path(source).is_dir():
        check_name(source, "data set", DataError)
    with foreign(f"The data set {source!r} cannot be loaded", f"Without network give a jsonl file of {wanted}."):
        return list(datasets.load_dataset(source, split=split, trust_remote_code=False))


@cache
def read_squad(source: str) -> Sequence[Question]:
    """The answerable questions of a file in SQuAD's format (1.1 or 2.0; XQuAD has it too).

    Raises:
        DataError: no such file, or another format.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{source} does not exist; give a JSON file in SQuAD's format.")
    content = read_json(path)
    try:
        questions = [
            Question(paragraph["context"], row["question"], tuple(dict.fromkeys(one["text"] for one in row["answers"])))
            for article in content["data"]
            for paragraph in article["paragraphs"]
            for row in paragraph["qas"]
            if row["answers"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not in SQuAD's format (data > paragraphs > context, qas > question, answers > text): {error!r}."
        ) from None
    if not questions:
        raise DataError(f"{path} has no question with an answer.")
    return questions


@cache
def chosen_rows(rows: int, samples: int, seed: int) -> Sequence[int]:
    """Which rows are asked: all of them, or ``samples`` drawn without repetition, in the order of the file."""
    return range(rows) if samples >= rows else sorted(Random(f"rows {seed}").sample(range(rows), samples))
