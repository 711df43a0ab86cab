"""How well a layer plan recalls: what a study of yours measured, or what the paper printed; never a guess."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from plait.errors import DataError
from plait.files import read_text
from plait.statistics.interval import Interval

#: RULER averages of the 1.3B models of 2507.06457, which place one full layer in every R. RetNet's and HGRN's are not
#: printed ("near zero"), nor are those of the 340M models.
PUBLISHED: dict[tuple[str, str], float] = {
    ("deltanet", "24:1"): 0.417,
    ("deltanet", "12:1"): 0.352,
    ("deltanet", "6:1"): 0.371,
    ("deltanet", "3:1"): 0.426,
    ("deltanet", "pure"): 0.320,
    ("gated_deltanet", "24:1"): 0.341,
    ("gated_deltanet", "12:1"): 0.352,
    ("gated_deltanet", "6:1"): 0.425,
    ("gated_deltanet", "3:1"): 0.436,
    ("gated_deltanet", "pure"): 0.356,
    ("gla", "24:1"): 0.293,
    ("gla", "12:1"): 0.288,
    ("gla", "6:1"): 0.330,
    ("gla", "3:1"): 0.332,
    ("gla", "pure"): 0.144,
    ("hgrn2", "24:1"): 0.303,
    ("hgrn2", "12:1"): 0.368,
    ("hgrn2", "6:1"): 0.434,
    ("hgrn2", "3:1"): 0.395,
    ("hgrn2", "pure"): 0.203,
    ("attention", "full"): 0.423,
}
PAPER_HIDDEN_SIZE = 2048


@dataclass(frozen=True)
class Recall:
    """A measured accuracy.

    Args:
        value: mean accuracy, 0 to 1.
        source: ``paper``, or ``study NAME``.
        low, high: ends of its interval, where the study has one.
    """

    value: float
    source: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class RecallTable:
    """Recall by mixer, ratio and placement; None as placement stands for plans that have none.

    Args:
        rows: what is known.
        source: where it is from, for people.
    """

    rows: dict[tuple[str, str, str | None], Recall]
    source: str

    def get(self, mixer: str, ratio: str, placement: str | None) -> Recall | None:
        """The recall of a plan without window and grouped heads, or None where nobody measured it."""
        return self.rows.get((mixer, ratio, placement))


class _Configuration(BaseModel):
    """What the planner reads of a configuration in a study's ``report.json``; the file holds more."""

    mixer: str
    ratio: str
    placement: str
    parameters: dict[str, int]
    metrics: dict[str, Interval]
    fields: dict[str, Any] = {}


class _StudyReport(BaseModel):
    """What the planner reads of a study's ``report.json``."""

    name: str
    configurations: list[_Configuration]


def published(layers: int, hidden_size: int) -> RecallTable:
    """The paper's figures, for its own shape; empty for any other, since recall depends on size."""
    if (layers, hidden_size) != (24, PAPER_HIDDEN_SIZE):
        return RecallTable(
            {}, "2507.06457 reports recall for its 1.3B shape only, so the recall of this shape is unknown"
        )
    rows = {
        (mixer, ratio, None if ratio in ("pure", "full") else "period_r"): Recall(value, "paper")
        for (mixer, ratio), value in PUBLISHED.items()
    }
    return RecallTable(rows, "RULER averages printed in 2507.06457, 1.3B models, single runs")


def of_study(path: Path) -> RecallTable:
    """What a study measured, whatever the size of its models.

    Args:
        path: its ``report.json``, or the folder of it.

    Raises:
        DataError: there is no such file, it is not a study's report, or the study measured no recall.
    """
    path = path / "report.json" if path.is_dir() else path
    if not os.path.lexists(path):
        raise DataError(f"There is no file {path}: give the report.json of a finished study.")
    content = read_text(path)
    try:
        study = _StudyReport.model_validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path} is not the report.json of a study: {error.errors()[0]['msg']}.") from None
    rows = {}
    for configuration in study.configurations:
        others = set(configuration.fields) - {"model.placement"}
        if others or "recall" not in configuration.metrics:  # a further axis of the grid makes it another model
            continue
        recall = configuration.metrics["recall"]
        interval = (None, None) if recall.over == "none" else (recall.low, recall.high)
        placement = None if configuration.ratio in ("pure", "full") else configuration.placement
        rows[configuration.mixer, configuration.ratio, placement] = Recall(
            recall.mean, f"study {study.name}", *interval
        )
    if not rows:
        raise DataError(f"{path}: the study {study.name!r} measured no recall; it needs a track of kind recall.")
    size = max(max(configuration.parameters.values(), default=0) for configuration in study.configurations)
    return RecallTable(rows, f"recall that study {study.name!r} measured on models of up to {size:,} parameters")
