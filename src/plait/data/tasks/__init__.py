"""Synthetic tasks, one a file; the catalogue (kind ``task``) maps names to classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait import catalog
from plait.data.tasks.base import Task, TaskDataset

__all__ = ["Task", "TaskDataset", "build_task"]


def build_task(name: str, options: Mapping[str, Any]) -> Task:
    """The task of the catalogue with these options.

    Raises:
        CatalogError: no such task.
        OptionError: an unknown option or a value of the wrong type.
        DataError: options that do not fit together.
    """
    task: type[Task] = catalog.get(name, "task").load()
    return task.parse(name, options)
