"""Files and folders that survive a kill: a name that is taken is complete.

Everything is written under a name that starts with ``.partial`` and renamed when it is on disk. Deleting goes the
other way: rename first, then delete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from plait.errors import TrainingError
from plait.files import reading
from plait.files.manifest import seal

PARTIAL = ".partial"
#: Key of a sealed JSON file that holds the hash of the others.
SEAL = "sha256"


def write_json(path: Path, content: Any, *, sealed: bool = False) -> None:
    """Write JSON so that ``path`` holds either its old content or all of the new one.

    Args:
        path: the file.
        content: what it holds; a mapping if it is sealed.
        sealed: add a hash of the content, which :func:`read_back` compares.
    """
    if sealed:
        content = {**content, SEAL: _hash_of(content)}
    write_text(path, json.dumps(content, indent=2))


def write_text(path: Path, text: str) -> None:
    """Write a text so that ``path`` holds either its old content or all of the new one."""
    partial = path.with_name(f"{PARTIAL}-{path.name}-{os.getpid()}")
    with open(partial, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_back(path: Path) -> Any:
    """What :func:`write_json` wrote, without its seal.

    Raises:
        TrainingError: the file is not JSON, or its content is not what was sealed.
    """
    try:
        content = reading.read_json(path, TrainingError)
    except TrainingError as error:
        raise TrainingError(f"{error} Delete the run's folder or restore the file.") from None
    if isinstance(content, dict) and SEAL in content:
        digest = content.pop(SEAL)
        if digest != _hash_of(content):
            raise TrainingError(
                f"{path} is damaged: its content is not what was saved (the SHA-256 differs); restore the file, or "
                "delete the run's folder."
            )
    return content


def publish_folder(partial: Path, final: Path) -> None:
    """Seal a fully written folder and give it its name, replacing a folder that has it.

    Args:
        partial: the written folder, on the same file system.
        final: its name from now on.
    """
    seal(partial)
    if final.exists():
        remove_folder(final)
    os.replace(partial, final)


def remove_folder(folder: Path) -> None:
    """Delete a folder; killed half-way, it leaves only a name that :func:`clean` removes."""
    doomed = folder.with_name(f"{PARTIAL}-removed-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def clean(folder: Path, pattern: str = f"{PARTIAL}*") -> None:
    """Delete what a killed run left unfinished; only the one that may write in the folder calls it."""
    for path in sorted(folder.glob(pattern)):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have been inside one of the folders


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
