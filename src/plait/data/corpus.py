"""The contract of a corpus: documents in three splits that are always the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from plait.data.chat import ChatTemplate
from plait.data.order import stable_hash
from plait.errors import OptionError, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
GROUP = 20


class Document(NamedTuple):
    """One text; ``name`` says where it comes from."""

    name: str
    text: str


class Corpus(ABC):
    """Documents by split.

    Attributes:
        spec: what the user wrote.
        chat: writes the messages of a chat as text, where rows hold those; None: such rows are refused.
    """

    spec: str
    chat: ChatTemplate | None = None

    @abstractmethod
    def documents(self, split: str) -> Iterator[Document]:
        """The documents of ``train``, ``validation`` or ``test``, always in the same order; empty ones included.

        Raises:
            DataError: something that cannot be read; the message names the file and the place in it.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the corpus does; cheap, so files are judged by path, size and time of change."""


def checked_split(split: str) -> Split:
    """``split`` if it is one of :data:`SPLITS`, else an :class:`OptionError`."""
    for known in SPLITS:
        if split == known:
            return known
    raise OptionError(f"There is no split {split!r}.{nearest(split, SPLITS)}")


def split_of(name: str, index: int) -> Split:
    """The split of row or block ``index`` of ``name``: of every 20 one is test and another validation, by hash."""
    group, place = divmod(index, GROUP)
    test = stable_hash(name, group, "test") % GROUP
    if place == test:
        return "test"
    validation = (test + 1 + stable_hash(name, group, "validation") % (GROUP - 1)) % GROUP
    return "validation" if place == validation else "train"


def file_fingerprint(root: Path, files: list[Path]) -> str:
    """Hash of the files' paths below ``root``, sizes and times of change."""
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in sorted(files)]
    return f"{stable_hash([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]):016x}"
