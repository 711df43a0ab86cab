"""Rows of jsonl and parquet files; whatever is broken is an error that names the file and the row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.errors import DataError, nearest
from plait.extras import install_command
from plait.files import check_pointer, decode, foreign, opened, parse_json, quoted, reason, regular_file

TEXT_SUFFIXES = {".txt", ".md", ".py"}
RECORD_SUFFIXES = {".jsonl", ".parquet"}

#: Makes one text of the messages of a chat; the second argument is the place, for messages.
Chat = Callable[[list[Mapping[str, Any]], str], str]


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case: ``.jsonl`` of ``rows.JSONL.gz``."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz") if not name.endswith(".parquet.gz") else name).suffix


def read_records(path: Path, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a jsonl or parquet file, each with its place for messages.

    Args:
        path: the file.
        field: the column that will be used; of parquet, nothing else is read.
    """
    return _read_parquet(path, field) if path.suffix.lower() == ".parquet" else _read_jsonl(path)


def field_text(row: Mapping[str, Any], field: str, where: str, chat: Chat | None = None) -> str:
    """The text in ``row[field]``; null is an empty text.

    Args:
        row: the row.
        field: name of the field.
        where: the row's place, for messages.
        chat: makes a text of the messages of a chat, where the field holds those.

    Raises:
        DataError: the field is missing (naming the fields found) or holds something else than text.
    """
    if field not in row:
        raise missing_field(field, list(row), where)
    value = row[field]
    if value is None:
        return ""
    if is_chat(value):
        if chat is None:
            raise DataError(
                f"{where}: field {field!r} holds the messages of a chat. They are read with a tokenizer that has a "
                "chat template: set 'tokenizer: hf:NAME' of the data, or write each chat as one text."
            )
        value = chat(value, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} holds {type(value).__name__} ({quoted(value, 40)}), not text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: field {field!r} is not valid Unicode: half a surrogate pair at character {error.start}; "
                "repair or remove the row."
            ) from None
    return value


def is_chat(value: Any) -> bool:
    """Whether a field holds messages, each with a ``role`` and a ``content``."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in value)
    )


def missing_field(field: str, found: list[str], where: str) -> DataError:
    """The error that names the fields found and the nearest one."""
    hint = nearest(field, found)
    hint = hint if hint.startswith(" Did you mean") else ""
    if not hint and "messages" in found:
        hint = " Chats are read with 'field: messages' and a tokenizer that has a chat template."
    names = ", ".join(name[:40] for name in found[:30])
    return DataError(f"{where} has no field {field!r}; found {names or 'none'}.{hint} Set 'field' of the data.")


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    offset = 0
    with opened(path) as file:
        for number, content in enumerate(file, 1):
            if number == 1:
                check_pointer(content, path)
            line = decode(content, path, offset, place=f", line {number}")
            offset += len(content)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise DataError(f"{where} is {type(row).__name__}, not an object with fields.")
            yield where, row


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs the package pyarrow: {install_command('hub')}") from None
    regular_file(path)
    with path.open("rb") as start:
        check_pointer(start.read(64), path)
    broken = foreign(f"{path} is not a readable parquet file", "Write it again, or remove it.")
    with broken, parquet.ParquetFile(path) as file:
        if field not in file.schema_arrow.names:
            raise missing_field(field, file.schema_arrow.names, str(path))
        number = 0
        for batch in file.iter_batches(columns=[field]):
            for row in _batch_rows(batch, path, number):
                number += 1
                yield f"{path}, row {number}", row


def _batch_rows(batch: Any, path: Path, before: int) -> list[dict[str, Any]]:
    """The rows of a batch; one that is broken, such as a string that is not UTF-8, is named by its number."""
    try:
        return list(batch.to_pylist())
    except Exception:  # which row, is found one by one
        rows = []
        for index in range(len(batch)):
            try:
                rows += batch.slice(index, 1).to_pylist()
            except Exception as error:
                raise DataError(
                    f"{path}, row {before + index + 1} cannot be read: {reason(error)}. Repair or remove the row."
                ) from error
        return rows
