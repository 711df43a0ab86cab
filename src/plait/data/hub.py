"""Corpora of the Hugging Face hub, streamed; ``datasets`` is imported only when one is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plait.data.corpus import SPLITS, Corpus, Document, checked_split, file_fingerprint, split_of
from plait.data.files import field_text
from plait.data.order import stable_hash
from plait.errors import DataError
from plait.extras import install_command


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
        self._load = datasets.load_dataset
        self.spec = spec
        self.field = field
        self.path: str = name
        self.config: str | None = None
        self._lacking: list[str] = []
        if ":" in name and not Path(name).exists():
            self.path, _, self.config = name.rpartition(":")

    def fingerprint(self) -> str:
        parts: list[object] = [self.spec, self.field]
        folder = Path(self.path)
        if folder.is_dir():
            parts.append(file_fingerprint(folder, [path for path in folder.rglob("*") if path.is_file()]))
        return f"{stable_hash(*parts):016x}"

    def documents(self, split: str) -> Iterator[Document]:
        rows, source = self.rows(split)
        for index, row in enumerate(rows):
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

    def text(self, split: str, source: str, index: int, row: Any) -> str | None:
        """The text of row ``index`` of :meth:`rows`; None where the row belongs to another split."""
        text = field_text(row, self.field, f"{self.spec}, split {source}, row {index}")
        if source == "train":
            found = split_of(f"{self.spec}/train", index)
            if (found if found in self._lacking else "train") != split:
                return None
        return text

    def _open(self) -> Any:
        try:
            return self._load(self.path, self.config, streaming=True)
        except Exception as error:  # datasets, its file systems and its network libraries raise many kinds
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"Corpus {self.spec!r} cannot be loaded: {reason}") from error
