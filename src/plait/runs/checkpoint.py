"""Files of a run that survive being killed: a name that is taken is complete.

Everything is written under a name that starts with ``.partial`` and renamed when it is on disk. Deleting goes the
other way: rename first, then delete. So a folder ``checkpoint-N`` was whole when it got its name, and its manifest
tells whether it still is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from plait import files
from plait.errors import TrainingError
from plait.storage.manifest import fault, seal

PARTIAL = ".partial"
DAMAGED = "damaged"
#: Key of a sealed JSON file that holds the hash of the others.
SEAL = "sha256"
_log = logging.getLogger("plait")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_json(path: Path, content: Any, *, sealed: bool = False) -> None:
    """Write JSON so that ``path`` holds either its old content or all of the new one.

    Args:
        path: the file.
        content: what it holds; a mapping if it is sealed.
        sealed: add a hash of the content, which :func:`read_json` compares.
    """
    if sealed:
        content = {**content, SEAL: _hash_of(content)}
    partial = path.with_name(f"{PARTIAL}-{path.name}-{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run, without its seal.

    Raises:
        TrainingError: the file is not JSON, or its content is not what was sealed.
    """
    try:
        content = files.read_json(path, TrainingError)
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


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


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


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder, so that nothing goes on from it and its files can still be looked at."""
    aside = folder.with_name(f"{DAMAGED}-{folder.name}")
    if aside.exists():
        remove_folder(aside)
    os.replace(folder, aside)
    return aside


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; see :func:`newest_whole` for damage."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was saved; damaged ones after it are set aside, with a warning.

    Raises:
        TrainingError: there are checkpoints and none is whole.
    """
    found = checkpoints(folder)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(found):
        wrong = fault(checkpoint)
        if wrong is None:
            for path, why in damaged:
                _log.warning(
                    "%s is damaged: %s. Going on from %s; the damaged one is now %s.",
                    path,
                    why,
                    checkpoint.name,
                    set_aside(path).name,
                )
            return checkpoint
        damaged.append((checkpoint, wrong))
    if damaged:
        listed = "; ".join(f"{path.name}: {why}" for path, why in damaged[:5])
        raise TrainingError(
            f"No checkpoint in {folder} is whole: all are damaged ({listed}). Restore one from a copy, or delete "
            "them to begin anew."
        )
    return None


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        remove_folder(path)
