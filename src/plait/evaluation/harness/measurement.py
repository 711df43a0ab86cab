"""A task of lm-eval as one measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.harness.run import CORRECT, require_lm_eval, run_harness
from plait.evaluation.measurements import Advance, Measurement, Score
from plait.evaluation.subject import Subject
from plait.statistics.intervals import Z, interval_method, score_interval


@dataclass(frozen=True)
class HarnessMeasurement(Measurement):
    """lm-eval's score of one task.

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
    unit = "requests"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.task

    @property
    def samples(self) -> int:  # type: ignore[override]
        return 1

    @property
    def spec(self) -> dict[str, Any]:
        data = "hub" if self.data_dir is None else "folder"
        return {"harness": self.task, "data": data, "limit": self.limit, "max_length": self.max_length}

    def check(self, subject: Subject) -> None:
        require_lm_eval()
        if subject.tokenizer is None:
            raise OptionError(f"{subject.name} has no tokenizer, so it cannot be measured on tasks of text.")

    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        done: dict[str, tuple[int, int]] = {}  # of each kind of request, and how many there are

        def progress(kind: str, so_far: int, total: int) -> None:
            before = done.get(kind, (0, total))[0]
            done[kind] = (so_far, total)
            advance(so_far - before, sum(total for _, total in done.values()))

        found = run_harness(
            subject.model,
            subject.tokenizer,
            [self.task],
            data_dir=self.data_dir,
            limit=self.limit,
            batch_size=batches.size,
            max_length=self.max_length,
            progress=progress,
        )
        result = next(iter(found["tasks"].values()))
        metric, first = next(iter(result["metrics"].items()))
        more = {"metrics": result["metrics"], "n": result["n"], "version": result["version"]}
        if result["correct"] is not None:
            values = result["correct"]
            metric = next(name for name in CORRECT if name in result["metrics"])
            low, high = score_interval(values)
            return Score(
                metric, sum(values) / len(values), low, high, values, more=more, interval=interval_method(values)
            )
        half = Z * (first["stderr"] or 0.0)
        method = "normal" if first["stderr"] else "none"
        value = first["value"]
        return Score(metric, value, value - half, value + half, [], more=more, interval=method)


def folder_names(folder: Path) -> list[str]:
    """lm-eval's names of the tasks whose rows are in a folder.

    Raises:
        OptionError: lm-eval is not installed.
    """
    require_lm_eval()
    from plait.evaluation.harness.tasks import FILES

    names = {file: name for name, file in FILES.items()}
    return [names.get(path.stem, path.stem) for path in sorted(folder.glob("*.jsonl"))]
