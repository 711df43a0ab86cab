"""The exceptions that users meet. Each message says what is wrong, where, and how to fix it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Names that are longer are no mistyped ones, and comparing them would take long.
_LONGEST_NAME = 200


class PlaitError(Exception):
    """Base of every error that plait raises on purpose; the command line prints it as one sentence."""


class OptionError(PlaitError, ValueError):
    """An option, key or value that does not exist or is out of range."""


class CatalogError(PlaitError, KeyError):
    """A name that the catalogue does not hold."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0])


class BackendUnavailable(PlaitError, RuntimeError):
    """A backend was asked for by name and cannot serve; the message names the reason and the extra."""


class CacheError(PlaitError, RuntimeError):
    """A cache was asked for something that its layers cannot do, such as forgetting tokens."""


class DataError(PlaitError, ValueError):
    """A corpus, tokenizer or task that cannot be read or built; the message names the file."""


class TrainingError(PlaitError, RuntimeError):
    """Training cannot go on (a loss that is not finite, a checkpoint that does not fit)."""


class FolderInUse(PlaitError, RuntimeError):
    """A folder that another process is writing; the message says which."""


class StudyError(PlaitError, RuntimeError):
    """A study file or folder that cannot be run or reported."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known name, or a list of the known names."""
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=1) if len(name) <= _LONGEST_NAME else []
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(known)}."
