"""Text to learn from: the standard library's sources, files of one's own, or a data set of the hub.

Every corpus has the splits ``train``, ``validation`` and ``test``, near 90 / 5 / 5 and always the same:

- a folder of text files is split by file, by the hash of the path inside the folder; each held-out split gets at
  least one file, and no file is in two splits. With fewer than three files each file is split like a single one;
- a single text file is cut at line ends into 100 contiguous blocks (20 below 400,000 characters); of every 20
  blocks one, chosen by hash of the index, is test and another validation. Neighbours of one split are one document;
- rows (jsonl, parquet, hub) are split in the same way: of every 20 rows one is test and another validation. A hub
  data set keeps the splits that it has.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Collection, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import ClassVar

from plait.data.corpus import GROUP, Corpus, Document, Split, checked_split, file_fingerprint, split_of
from plait.data.hub import HubCorpus
from plait.data.order import stable_hash
from plait.data.records import RECORD_SUFFIXES, TEXT_SUFFIXES, field_text, read_records, suffix_of
from plait.errors import DataError, OptionError, nearest
from plait.files import PACKED_SUFFIXES, read_text, regular_file

# Left out of python-stdlib: tests (many distributions ship without them), installed packages, and generated tables
# (encodings is 1.4 MB of near copies that would sit on both sides of a split; pydoc_data is one 0.7 MB string).
_STDLIB_WITHOUT = {
    "__pycache__",
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}
_LARGE_FILE = 400_000


def open_corpus(spec: str, field: str = "text") -> Corpus:
    """The corpus that ``spec`` names; reads names and sizes, not yet the text.

    Args:
        spec: ``python-stdlib``, ``text:PATH`` (a file or folder of txt, md, py, jsonl, parquet) or
            ``hf:NAME[:CONFIG]`` (a data set of the hub, or a local folder of one).
        field: field of jsonl, parquet or hub rows that holds the text.

    Raises:
        OptionError: a spec of another form.
        DataError: a path that does not exist or holds no text.
    """
    kind, separator, rest = spec.partition(":")
    if spec == "python-stdlib":
        return _python_stdlib()
    if separator and not rest and kind in ("text", "hf"):
        raise OptionError(f"Corpus {spec!r} has nothing after the colon; write for instance {kind + ':'}NAME.")
    if kind == "text" and rest:
        return _text(spec, Path(rest).expanduser(), field)
    if kind == "hf" and rest:
        return HubCorpus(spec, rest, field)
    raise OptionError(f"There is no corpus {spec!r}.{nearest(spec, ['python-stdlib', 'text:PATH', 'hf:NAME'])}")


class TextFiles(Corpus):
    """Plain text files.

    Args:
        spec: what the user wrote.
        root: folder that names are relative to.
        files: the files.
    """

    _few: ClassVar[int] = 3

    def __init__(self, spec: str, root: Path, files: list[Path]) -> None:
        self.spec = spec
        self.root = root
        self.files = files

    def fingerprint(self) -> str:
        return file_fingerprint(self.root, self.files)

    def documents(self, split: str) -> Iterator[Document]:
        split = checked_split(split)
        if len(self.files) < self._few:
            for path in self.files:
                yield from _blocks(self._name(path), read_text(path), split)
            return
        for path in self.split_files(split):
            yield Document(self._name(path), read_text(path))

    def split_files(self, split: Split) -> list[Path]:
        """The files of a split, in the order of their hashes, so that a prefix of it is a fair sample."""
        ranked = sorted(self.files, key=lambda path: (stable_hash(self._name(path)), path))
        shares = [stable_hash(self._name(path)) / 2**64 for path in ranked]
        test = min(max(1, sum(share < 0.05 for share in shares)), len(ranked) - 2)
        validation = min(max(1, sum(0.05 <= share < 0.10 for share in shares)), len(ranked) - test - 1)
        return {
            "test": ranked[:test],
            "validation": ranked[test : test + validation],
            "train": ranked[test + validation :],
        }[split]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


class RecordFiles(Corpus):
    """Rows of jsonl or parquet files, one document a row.

    Args:
        spec: what the user wrote.
        root: folder that names are relative to.
        files: the files.
        field: field that holds the text.
    """

    def __init__(self, spec: str, root: Path, files: list[Path], field: str) -> None:
        self.spec = spec
        self.root = root
        self.files = files
        self.field = field

    def fingerprint(self) -> str:
        chat = f"-{self.chat.fingerprint}" if self.chat is not None else ""
        return f"{file_fingerprint(self.root, self.files)}-{self.field}{chat}"

    def documents(self, split: str) -> Iterator[Document]:
        split = checked_split(split)
        for path in self.files:
            name = path.relative_to(self.root).as_posix()
            for index, (where, row) in enumerate(read_records(path, self.field)):
                text = field_text(row, self.field, where, self.chat)  # also of other splits: a bad row is found at once
                if split_of(name, index) == split:
                    yield Document(f"{name}:{index + 1}", text)


def _python_stdlib() -> Corpus:
    root = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in _walk(root, without=_STDLIB_WITHOUT)
        if path.suffix == ".py" and not path.name.startswith("_sysconfigdata")  # paths of one machine
    ]
    if not files:
        raise DataError(
            f"The standard library in {root} holds no Python sources (only compiled files?); "
            "use a Python that ships its sources, or corpus text:PATH."
        )
    return TextFiles("python-stdlib", root, files)


def _text(spec: str, path: Path, field: str) -> Corpus:
    if path.is_dir():
        root, files = path, _walk(path)
    else:
        if not path.exists() and not path.is_symlink():
            raise DataError(f"There is no file or folder {path} (corpus {spec!r}).")
        root, files = path.parent, [regular_file(path)]
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; give a file with text.")

    known = ", ".join(sorted(TEXT_SUFFIXES | RECORD_SUFFIXES))
    text = [file for file in files if suffix_of(file) in TEXT_SUFFIXES]
    records = [file for file in files if suffix_of(file) in RECORD_SUFFIXES]
    if text and records:
        raise DataError(
            f"{path} mixes plain text ({text[0].relative_to(root)}) and rows ({records[0].relative_to(root)}); "
            "point the corpus at one kind, in a folder of its own."
        )
    if not text and not records:
        raise DataError(f"{path} holds no text: {known} and .gz of them are read, {_others(files)}")
    for file in text + records:
        regular_file(file)
    if all(file.stat().st_size == 0 for file in text + records):
        raise DataError(f"{path} holds only empty files.")
    return TextFiles(spec, root, text) if text else RecordFiles(spec, root, records, field)


def _others(files: list[Path]) -> str:
    """What was found instead of text, and how to read it."""
    suffixes = sorted({file.suffix.lower() or file.name for file in files})
    found = f"found {', '.join(suffix[:20] for suffix in suffixes[:20]) or 'nothing'}."
    for suffix in suffixes:
        if suffix in PACKED_SUFFIXES:
            return f"{found} Unpack {suffix} first: {PACKED_SUFFIXES[suffix]} FILE."
    if {".csv", ".json"} & set(suffixes):
        return f"{found} The package datasets reads csv and json: use corpus hf:FOLDER."
    return found


def _walk(root: Path, without: Collection[str] = ()) -> list[Path]:
    """Files below ``root`` in sorted order, without hidden ones and the folders named; links are not followed."""
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in without)
        found.extend(Path(folder, name) for name in sorted(files) if not name.startswith("."))
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _blocks(name: str, text: str, split: Split) -> Iterator[Document]:
    """The parts of one file that belong to ``split``; see the module's docstring."""
    count = GROUP if len(text) < _LARGE_FILE else 5 * GROUP
    even = [i * len(text) // count for i in range(count + 1)]
    borders = [0, *(_line_end(text, start, stop) for start, stop in pairwise(even[1:])), len(text)]
    for found, run in groupby(range(count), key=lambda index: split_of(name, index)):
        blocks = list(run)
        start, stop = borders[blocks[0]], borders[blocks[-1] + 1]
        if found == split and start < stop:
            yield Document(f"{name}[{start}:{stop}]", text[start:stop])


def _line_end(text: str, start: int, stop: int) -> int:
    """The first place in ``[start, stop)`` after a line end, else after a blank, else ``start``."""
    for mark in ("\n", " "):
        place = text.find(mark, start, stop)
        if place >= 0:
            return place + 1
    return start
