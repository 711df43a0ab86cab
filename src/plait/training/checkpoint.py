"""Files of a run that survive being killed: a name that is taken is complete.

Everything is written under a name that starts with ``.partial`` and renamed when it is on disk. Deleting goes the
other way: rename first, then delete. So a folder ``checkpoint-N`` is always whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from plait.errors import TrainingError

PARTIAL = ".partial"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that ``path`` holds either its old content or all of the new one."""
    partial = path.with_name(f"{PARTIAL}-{path.name}-{os.getpid()}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run.

    Raises:
        TrainingError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(
            f"{path} is not valid JSON ({error}); delete the run's folder or restore the file."
        ) from None


def publish_folder(partial: Path, final: Path) -> None:
    """Give a fully written folder its name, replacing a folder that has it.

    Args:
        partial: the written folder, on the same file system.
        final: its name from now on.
    """
    for file in partial.rglob("*"):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
    if final.exists():
        remove_folder(final)
    os.replace(partial, final)


def remove_folder(folder: Path) -> None:
    """Delete a folder; killed half-way, it leaves only a name that :func:`clean` removes."""
    doomed = folder.with_name(f"{PARTIAL}-removed-{folder.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed)


def clean(folder: Path) -> None:
    """Delete what a killed run left unfinished."""
    for path in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        remove_folder(path)
