"""Progress of a study on stderr: a bar in a terminal, and a line for each trial that ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from plait.evaluation.progress import duration
from plait.study.scores import task_metrics, text_metrics
from plait.study.store import Store
from plait.study.trials import Trial


class StudyProgress:
    """Shows how many trials are done, what runs at which step, the time left, and each result as it comes.

    Args:
        store: of the study.
        trials: all of them; those that were done before count as done.
    """

    def __init__(self, store: Store, trials: Sequence[Trial]) -> None:
        self.store = store
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.total = len(trials)
        self.fraction = {trial.hash: self._fraction(trial) for trial in trials}
        self.first = dict(self.fraction)
        self.work = {trial.hash: tokens(trial) for trial in trials}
        self.ended_count = sum(store.result(trial) is not None for trial in trials)
        self.began = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("trials  {task.fields[left]}  {task.fields[running]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=self.total, completed=self.ended_count, left="", running="")

    def __enter__(self) -> StudyProgress:
        if self.ended_count:
            self.console.print(f"{self.ended_count} of {self.total} trials are done already.")
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def update(self, running: Sequence[Trial]) -> None:
        """Refresh what runs now."""
        if not self.console.is_terminal:
            return
        for trial in running:
            self.fraction[trial.hash] = self._fraction(trial)
        now = ", ".join(f"{t.track} {t.key} s{t.seed} {self.fraction[t.hash]:.0%}" for t in running)
        self.bar.update(self.task, completed=self.ended_count, left=self.time_left(), running=now)

    def ended(self, trial: Trial) -> None:
        """Print how a trial ended."""
        self.fraction[trial.hash] = 1.0
        self.ended_count += 1
        left = self.time_left()
        line = f"{self.ended_count}/{self.total}  {trial.label}  {self._outcome(trial)}" + (
            f"  [{left}]" if left else ""
        )
        self.console.print(line, markup=False)

    def time_left(self) -> str:
        """From the tokens that this run has worked through so far, with that rate; empty at its very start."""
        done = sum((self.fraction[key] - self.first[key]) * work for key, work in self.work.items())
        ahead = sum((1 - self.fraction[key]) * work for key, work in self.work.items())
        if done <= 0 or ahead <= 0:
            return ""
        elapsed = time.monotonic() - self.began
        return f"{duration(elapsed * ahead / done)} left, at {done / elapsed:,.0f} training tokens a second so far"

    def _fraction(self, trial: Trial) -> float:
        return 1.0 if self.store.result(trial) else min(1.0, self.store.step(trial) / trial.config.training.steps)

    def _outcome(self, trial: Trial) -> str:
        result = self.store.result(trial)
        if result is None:
            return f"failed: {(self.store.error(trial) or {'error': 'no record'})['error'].splitlines()[0]}"
        evaluation = result["evaluation"]
        metrics = text_metrics([evaluation]) | task_metrics(trial.track, [evaluation])
        shown = {"loss": "loss", f"task:{trial.track}": "recall" if trial.kind == "recall" else "accuracy"}
        parts = [f"{title} {metrics[name].mean:.3f}" for name, title in shown.items() if name in metrics]
        return ", ".join([*parts, f"{result['train']['seconds']:.0f} s"])


def tokens(trial: Trial) -> int:
    """Tokens that a trial trains on, padding included."""
    training, data = trial.config.training, trial.config.data
    sequences = training.steps * training.batch_size * training.accumulate * trial.resources.processes
    return sequences * int(data.options.get("length", data.length))
