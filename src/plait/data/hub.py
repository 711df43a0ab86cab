"""Corpora of the Hugging Face hub, streamed; ``datasets`` is imported only when one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from plait.data.corpus import SPLITS, Corpus, Document, checked_split, file_fingerprint, split_of
from plait.data.order import stable_hash
from plait.data.records import field_text
from plait.errors import DataError
from plait.extras import install_command
from plait.files import foreign, reason
from plait.hub import check_name


class HubCorpus(Corpus):
    """Rows of a hub data set, or of a local folder that ``datasets`` can load; one document a row.

    Splits that the set has are used as they are. A held-out split that it lacks is taken from the rows of its
    ``train``: one of every 20, by hash.

    Args:
        spec: what the user wrote.
        name: ``NAME``, ``NAME:CONFIG`` or the path of a folder.
        field: column that holds the text.

    Raises:
        DataError: ``datasets`` is not installed; the message names the extra.
    """

    def __init__(self, spec: str, name: str, field: str) -> None:
        try:
            import datasets
        except ImportError:
            raise DataError(f"Corpus {spec!r} needs the package datasets: {install_command('hub')}") from None
        self._load = partial(datasets.load_dataset, trust_remote_code=False)
        self.spec = spec
        self.field = field
        self.path: str = name
        self.config: str | None = None
        self._lacking: list[str] = []
        if ":" in name and not Path(name).exists():
            self.path, _, self.config = name.rpartition(":")
        if not Path(self.path).is_dir():
            check_name(self.path, "data set", DataError)

    def fingerprint(self) -> str:
        parts: list[object] = [self.spec, self.field]
        folder = Path(self.path)
        if folder.is_dir():
            parts.append(file_fingerprint(folder, [path for path in folder.rglob("*") if path.is_file()]))
        if self.chat is not None:
            parts.append(self.chat.fingerprint)
        return f"{stable_hash(*parts):016x}"

    def documents(self, split: str) -> Iterator[Document]:
        rows, source = self.rows(split)
        for index, row in enumerate(self.read(rows, source)):
            text = self.text(split, source, index, row)
            if text is not None:
                yield Document(f"{source}/{index}", text)

    def rows(self, split: str) -> tuple[Any, str]:
        """The streamed data set that holds a split, and the name of its own split: ``train`` where it lacks this one.

        Raises:
            DataError: it cannot be loaded or has no split ``train``.
        """
        split = checked_split(split)
        sets = self._open()
        if "train" not in sets:
            raise DataError(f"Corpus {self.spec!r} has no split 'train'; found {', '.join(map(str, sets))}.")
        self._lacking = [name for name in SPLITS if name not in sets]
        source = split if split in sets else "train"
        rows = sets[source]
        if rows.column_names and self.field in rows.column_names:
            rows = rows.select_columns([self.field])
        return rows, source

    def read(self, rows: Any, source: str) -> Iterator[Any]:
        """The rows one by one.

        Args:
            rows, source: of :meth:`rows`.

        Raises:
            DataError: whatever ``datasets`` raises on the way: a cut or damaged file, a wrong encoding, no network.
        """
        reader, count = iter(rows), 0
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except Exception as error:  # datasets, its readers and its file systems raise many kinds
                cause = error.__cause__ or error
                raise DataError(
                    f"{self.spec}, split {source}, after row {count}: cannot be read: {reason(cause)}. {_fix(cause)}"
                ) from error
            yield row
            count += 1

    def text(self, split: str, source: str, index: int, row: Any) -> str | None:
        """The text of row ``index`` of :meth:`rows`; None where the row belongs to another split."""
        text = field_text(row, self.field, f"{self.spec}, split {source}, row {index}", self.chat)
        if source == "train":
            found = split_of(f"{self.spec}/train", index)
            if (found if found in self._lacking else "train") != split:
                return None
        return text

    def _open(self) -> Any:
        with foreign(f"Corpus {self.spec!r} cannot be loaded", self._fix()):
            sets = self._load(self.path, self.config, streaming=True)
            return {name: sets[name] for name in sets}

    def _fix(self) -> str:
        folder = Path(self.path)
        if folder.is_dir() and not any(path.is_file() for path in folder.rglob("*")):
            return "The folder is empty: put files such as train.jsonl, train.parquet or train.csv into it."
        return ""


def _fix(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "Convert the file to UTF-8: iconv -f LATIN1 -t UTF-8 FILE > new.txt"
    return "Repair or remove the file; corpus text:PATH names the line of jsonl files."
