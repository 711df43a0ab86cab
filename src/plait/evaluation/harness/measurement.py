"""A task of lm-eval as one measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.harness.names import check_names, known_names, require_lm_eval
from plait.evaluation.harness.run import CORRECT, run_harness
from plait.evaluation.measurement import Advance, Measurement
from plait.evaluation.score import Score
from plait.evaluation.subject import Subject
from plait.statistics.intervals import Z


@dataclass(frozen=True)
class HarnessMeasurement(Measurement):
    """lm-eval's scores of one task.

    Args:
        task: lm-eval's name of it.
        data_dir: folder of its rows; None: from the hub.
        limit: only the first so many rows.
        max_length: most tokens that the model reads at once; None: what its configuration says.
    """

    task: str
    data_dir: Path | None = None
    limit: int | None = None
    max_length: int | None = None
    kind = "harness"
    unit = "requests"

    @property
    def name(self) -> str:
        return self.task

    @property
    def samples(self) -> int:
        return 1

    @property
    def settings(self) -> dict[str, Any]:
        data = "hub" if self.data_dir is None else "folder"
        return {"harness": self.task, "data": data, "limit": self.limit, "max_length": self.max_length}

    def check(self, subject: Subject) -> None:
        require_lm_eval()
        if subject.tokenizer is None:
            raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on tasks of text.")
        check_names([self.task], self.data_dir)
        if self.data_dir is None and self.task not in known_names():
            from plait.evaluation.harness.tasks import check_hub_names

            check_hub_names([self.task])

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        done: dict[str, tuple[int, int]] = {}  # of each kind of request, and how many there are

        def progress(kind: str, so_far: int, total: int) -> None:
            before = done.get(kind, (0, total))[0]
            done[kind] = (so_far, total)
            advance(so_far - before, sum(total for _, total in done.values()))

        results = run_harness(
            subject.model,
            subject.tokenizer,
            [self.task],
            data_dir=self.data_dir,
            limit=self.limit,
            batch_size=batches.size,
            max_length=self.max_length,
            progress=progress,
        )
        if self.task in results["tasks"]:
            return _scores(results["tasks"][self.task])
        counts = sum(task["n"] for task in results["tasks"].values())
        if self.task in results["groups"]:
            return _scores({**results["groups"][self.task], "n": counts, "correct": None, "version": None})
        each = [(name, score) for name, result in results["tasks"].items() for score in _scores(result)]
        return [replace(score, metric=f"{name}: {score.metric}") for name, score in each]


def _scores(result: dict[str, Any]) -> list[Score]:
    """The metrics of a task or of a group of them; what is right or wrong for each row comes first, with its rows."""
    more = {"version": result["version"]}
    right = next((name for name in CORRECT if name in result["metrics"]), None)
    scores = []
    if result["correct"] is not None and right is not None:
        scores.append(Score.of(right, result["correct"], more=more))
    for metric, one in result["metrics"].items():
        if one["value"] is None or (scores and metric == right):
            continue
        half = Z * (one["stderr"] or 0.0)
        ends = one["value"] - half, one["value"] + half
        method = "normal" if one["stderr"] else "none"
        scores.append(Score(metric, one["value"], *ends, method, result["n"], more=more))
    return scores
