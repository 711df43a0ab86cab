"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

#: What :func:`write_folder` names a folder that it fills: of which target, by which process.
_TEMPORARY = re.compile(r"\.(.+)\.\d+-[0-9a-f]{8}")


@contextmanager
def only_writer(target: Path, patience: float = -1) -> Iterator[None]:
    """Wait until no other process writes ``target``, and keep others waiting; what killed ones left of it is removed.

    Args:
        target: of :func:`write_folder`.
        patience: seconds to wait, without end below 0.

    Raises:
        Timeout: somebody else writes it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.parent / f".{target.name}.lock"
    with FileLock(path, timeout=patience):
        for leftover in target.parent.glob(f".{target.name}.*-*"):
            if _TEMPORARY.fullmatch(leftover.name):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield
        finally:
            with suppress(OSError):  # where open files cannot be deleted it stays, and does no harm
                path.unlink(missing_ok=True)  # who waits for it looks for the target first


def remove_leftovers(folder: Path) -> None:
    """Delete the half-written folders of killed processes; those that somebody is writing stay."""
    for path in sorted(folder.glob(".*")) if folder.is_dir() else []:
        match = _TEMPORARY.fullmatch(path.name)
        name = match[1] if match else path.name[1:].removesuffix(".lock") if path.name.endswith(".lock") else None
        if name is not None:
            with suppress(Timeout), only_writer(folder / name, patience=0):
                pass


def write_folder(target: Path, write: Callable[[Path], object]) -> None:
    """Fill a temporary folder with ``write(folder)``, then rename it to ``target``.

    A process killed on the way leaves no ``target``. If another process finishes the same folder first, its result
    stays: both hold the same content, since the name says what is inside.

    Args:
        target: where the folder shall appear.
        write: writes the files into the folder that it is given.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        write(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
