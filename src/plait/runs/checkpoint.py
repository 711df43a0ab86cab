"""Checkpoints of a run: a folder ``checkpoint-N`` was whole when it got its name, and its manifest tells whether it
still is.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from plait.errors import TrainingError
from plait.files.manifest import fault
from plait.files.writing import remove_folder

DAMAGED = "damaged"
_log = logging.getLogger("plait")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def set_aside(folder: Path) -> Path:
    """Rename a damaged folder, so that nothing goes on from it and its files can still be looked at."""
    aside = folder.with_name(f"{DAMAGED}-{folder.name}")
    if aside.exists():
        remove_folder(aside)
    os.replace(folder, aside)
    return aside


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; see :func:`newest_whole` for damage."""
    numbered = [
        (int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered)]


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was saved."""
    return int(checkpoint.name.rpartition("-")[2])


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was saved; damaged ones after it are set aside, with a warning.

    Raises:
        TrainingError: there are checkpoints and none is whole.
    """
    saved = checkpoints(folder)
    damaged: list[tuple[Path, str]] = []
    for checkpoint in reversed(saved):
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
            "them to start again."
        )
    return None


def rotate(folder: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints."""
    for path in checkpoints(folder)[:-keep]:
        remove_folder(path)
