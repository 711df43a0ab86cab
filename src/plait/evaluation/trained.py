"""What a model was trained on, as measurements on rows that training never reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from plait import catalog
from plait.data import DataBundle, MixtureData, TaskData, TextData
from plait.data.tasks import Task
from plait.errors import OptionError
from plait.evaluation.measurement import Measurement
from plait.evaluation.tasks import TaskMeasurement
from plait.evaluation.texts import HeldOutText
from plait.runs.config import EvaluateSection


def trained_measurements(data: DataBundle, section: EvaluateSection, *, baselines: bool = True) -> list[Measurement]:
    """The held-out text and the tasks that a model should know at the end of its training.

    Args:
        data: what it was trained on; of a mixture the parts that are active at the end count.
        section: samples, settings of tasks, and whether AR hits are counted.
        baselines: set compressors and a byte n-gram beside texts.

    Raises:
        OptionError: settings without a task, or that a task does not know.
        DataError: settings that do not fit together.
    """
    sources = parts(data)
    if section.settings and not any(isinstance(source, TaskData) for source in sources):
        raise OptionError("evaluate.settings: these are options of tasks, and no task is learnt to the end.")
    measurements: list[Measurement] = []
    for source in sources:
        if isinstance(source, TextData):
            measurements.append(
                HeldOutText(source, section.limit, section.ar_hits, section.ar_hits_rare_below, baselines)
            )
        else:
            measurements += _task_measurements(source.task, section.settings, section.limit)
    return measurements


def parts(data: DataBundle) -> list[TextData | TaskData]:
    """The sources that a model at the end of its training should know."""
    if isinstance(data, MixtureData):
        return [part for part, (_, _, end) in zip(data.parts, data.shares, strict=True) if end == 1]
    assert isinstance(data, TextData | TaskData)
    return [data]


def _task_measurements(task: Task, settings: Sequence[Mapping[str, Any]], rows: int) -> list[Measurement]:
    name = catalog.name_of(type(task), "task")
    tasks = task.single_settings
    if settings:
        known = dataclasses.asdict(tasks[0])
        tasks = [type(task).parse(name, {**known, **setting}) for setting in settings]
    told = dict.fromkeys(["length", *(key for setting in settings for key in setting), *_varying(tasks)])
    return [
        TaskMeasurement(label(name, {key: getattr(setting, key) for key in told}), setting, rows) for setting in tasks
    ]


def _varying(tasks: Sequence[Task]) -> list[str]:
    """Options in which tasks of one kind differ."""
    names = [field.name for field in dataclasses.fields(tasks[0])]
    return [name for name in names if any(getattr(task, name) != getattr(tasks[0], name) for task in tasks)]


def label(name: str, options: Mapping[str, Any]) -> str:
    """The name of a measurement: ``mqar length=64 pairs=4``."""
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])
