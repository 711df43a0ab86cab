"""Folders that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path


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
