"""Sizes and SHA-256 of the files of a finished folder, so that damage is found before anything is computed from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def seal(folder: Path, paths: Iterable[Path] | None = None) -> None:
    """Bring every file of a folder to the disk and write the manifest, last.

    Args:
        folder: completely written; nothing is added to it afterwards that belongs to it.
        paths: the files that belong to it; None: all of them.
    """
    files: dict[str, Any] = {}
    for path in sorted(folder.rglob("*") if paths is None else paths):
        if path.is_file() and path != folder / MANIFEST:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump({"files": files}, file, indent=2)
        file.flush()
        os.fsync(file.fileno())


def fault(folder: Path, *, content: bool = True) -> str | None:
    """What is wrong with a sealed folder: the first file that is missing, cut, changed or unreadable; None if nothing.

    Args:
        folder: see :func:`seal`. Files that the manifest does not name are not looked at.
        content: compare the hashes; False compares sizes, which reads nothing.
    """
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
            if content:
                with open(path, "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                        return f"{name} has changed since it was saved (its SHA-256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None
