"""Reading text files and rows; whatever is broken is an error that names the file and the place in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from plait.errors import DataError, nearest
from plait.extras import install_command

TEXT_SUFFIXES = {".txt", ".md", ".py"}
RECORD_SUFFIXES = {".jsonl", ".parquet"}


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, line ends as they are, without a byte order mark.

    Raises:
        DataError: broken UTF-8 (with the byte offset), a binary file, a file that cannot be opened.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    return decode(content, path)


def decode(content: bytes, path: Path, offset: int = 0) -> str:
    """``content``, which starts at byte ``offset`` of ``path``, as text; see :func:`read_text`."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") and offset == 0:
        raise DataError(f"{path} is UTF-16, not UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path} > new.txt")
    zero = content.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path} looks binary (a zero byte at offset {offset + zero}); remove it from the corpus.")
    try:
        text = content.decode("utf-8")
        return text.removeprefix("\ufeff") if offset == 0 else text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {offset + error.start} "
            f"({error.reason}); convert the file to UTF-8 or remove it from the corpus."
        ) from None


def read_records(path: Path, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a jsonl or parquet file, each with its place for messages.

    Args:
        path: the file.
        field: the column that will be used; of parquet, nothing else is read.
    """
    return _read_parquet(path, field) if path.suffix.lower() == ".parquet" else _read_jsonl(path)


def field_text(row: Mapping[str, Any], field: str, where: str) -> str:
    """The text in ``row[field]``; null is an empty text.

    Raises:
        DataError: the field is missing (naming the fields found) or holds something else than text.
    """
    if field not in row:
        raise missing_field(field, list(row), where)
    value = row[field]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: field {field!r} holds {type(value).__name__} ({str(value)[:40]!r}), not text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: field {field!r} is not valid Unicode: half a surrogate pair at character {error.start}; "
                "repair or remove the row."
            ) from None
    return value


def missing_field(field: str, found: list[str], where: str) -> DataError:
    """The error that names the fields found and the nearest one."""
    hint = nearest(field, found)
    hint = hint if hint.startswith(" Did you mean") else ""
    return DataError(
        f"{where} has no field {field!r}; found {', '.join(found) or 'none'}.{hint} Set 'field' of the data."
    )


def _read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    offset = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            line = decode(content, path, offset)
            offset += len(content)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{where} is {type(row).__name__}, not an object with fields.")
            yield where, row


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs the package pyarrow: {install_command('hub')}") from None
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise missing_field(field, file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(columns=[field]):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
