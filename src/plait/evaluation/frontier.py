"""Quality against budget for several policies, as "The Sparse Frontier" draws it (2504.17768, figures 2 and 3).

Each task is measured at each length with every policy at every budget, a share of the text's keys per query; what a
policy really scored is measured beside, since a budget is what it was told and not what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait import catalog
from plait.errors import DataError, OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.session import measure
from plait.evaluation.subject import Subject
from plait.evaluation.suites import Unavailable, measurements_of
from plait.evaluation.under_policy import under_policy
from plait.runs.config import MeasureSection

DENSE = "dense"


@dataclass(frozen=True)
class Point:
    """One task under one policy at one budget.

    Args:
        policy: its name, or ``dense``.
        budget: share of the keys that it was given; 1 for dense.
        task: name of the measurement, with its length.
        score, low, high: the task's metric with its 95 % interval.
        interval: how it was found, see :class:`~plait.evaluation.score.Score`.
        prefill, decode: scored pairs per dense pair; None where there was nothing to score.
        held: bytes of the cache per byte of a dense one, after the last answer.
        options: of the policy.
    """

    policy: str
    budget: float
    task: str
    score: float
    low: float
    high: float
    interval: str
    prefill: float | None
    decode: float | None
    held: float | None
    options: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Args:
        policies: names.
        budgets: shares, ascending, each above 0 and at most 1.
        tasks: names of tasks and benchmarks.
        lengths: tokens.
        limit: samples of each.

    Raises:
        OptionError: an unknown policy or a share out of range.
    """

    policies: Sequence[str]
    budgets: Sequence[float]
    tasks: Sequence[str]
    lengths: Sequence[int]
    limit: int

    def __post_init__(self) -> None:
        for name in self.policies:
            catalog.get(name, "policy")
        wrong = [budget for budget in self.budgets if not 0 < budget <= 1]
        if wrong or not self.budgets:
            raise OptionError(f"budgets={list(self.budgets)}: each must be above 0 and at most 1.")


def frontier(subject: Subject, grid: Grid, folder: Path, batches: Batches) -> list[Point]:
    """Measure the grid; what ``folder`` holds already is not measured again.

    Args:
        subject: a model that can run under a policy.
        grid: what is measured.
        folder: a JSON file for each measurement.
        batches: rows at a time.

    Raises:
        PlaitError: a task that this model cannot be measured on, or a policy that it cannot run under.
    """
    points: list[Point] = []
    whole = len(grid.lengths) * (1 + len(grid.policies) * len(grid.budgets)) * len(grid.tasks)
    for length in grid.lengths:
        section = MeasureSection(tasks=list(grid.tasks), lengths=[length], limit=grid.limit)
        cases: list[tuple[str, float, dict[str, Any]]] = [(DENSE, 1.0, {})]
        for name in grid.policies:
            kind = catalog.get(name, "policy").load()
            for share in grid.budgets:
                cases.append((name, share, kind.with_budget(max(1, round(share * length)), length)))
        for name, share, options in cases:
            with under_policy(subject, name, options) as (changed, applied):
                for measurement in measurements_of(section, changed):
                    if isinstance(measurement, Unavailable):
                        raise OptionError(f"{measurement.name}: {measurement.reason}")
                    applied.reset_report()
                    place = folder / "measurements"
                    under = name if name == DENSE else f"{name} at budget {share:g}"
                    title = f"[{len(points) + 1}/{whole}] {measurement.name}, {under}"
                    result = next(iter(measure(changed, [measurement], place, batches, title=title)))
                    if "reason" in result:
                        raise OptionError(f"{measurement.name}: {result['reason']}")
                    work = _work(applied.report(), place / f"{changed.fingerprint}-{_slug(measurement.name)}.json")
                    score = result["scores"][0]
                    values = score["score"], score["low"], score["high"], score["interval"]
                    points.append(Point(name, share, measurement.name, *values, *work, options=options))
    return points


def records(points: Sequence[Point]) -> list[dict[str, Any]]:
    """The points as plain data."""
    return [asdict(point) for point in points]


def _work(report: Any, path: Path) -> tuple[float | None, float | None, float | None]:
    """The shares ``prefill``, ``decode`` and ``held`` of a :class:`Point`, kept beside the result for a second call."""
    from plait.files.writing import read_back, write_json

    if not report.dense_pairs and path.exists():  # the result was there already: nothing ran
        kept = read_back(path)
        if not isinstance(kept, dict) or set(kept) != {"prefill", "decode", "held"}:
            raise DataError(f"{path} does not hold what a policy did: delete {path.parent} and measure again.")
        return kept["prefill"], kept["decode"], kept["held"]
    shares: dict[str, float | None] = {
        name: int(work.pairs) / int(work.dense_pairs) if work.dense_pairs else None
        for name, work in (("prefill", report.prefill), ("decode", report.decode))
    }
    shares["held"] = report.bytes_held / report.bytes_held_dense if report.bytes_held_dense else None
    write_json(path, shares)
    return shares["prefill"], shares["decode"], shares["held"]


def _slug(name: str) -> str:
    from plait.evaluation.session import file_name

    return f"work-{file_name(name)}"
