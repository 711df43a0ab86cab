"""How far a measurement is: a bar in a terminal, lines elsewhere; always with the rate and the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

#: Seconds between two lines where there is no terminal.
PAUSE = 10.0


class Bar:
    """Progress of one measurement, shown on stderr.

    Args:
        title: what is measured.
        total: how many parts it has.
        unit: what a part is, such as ``samples``.
        shown: False is silent.
        clock: seconds; another one for tests.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "samples",
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._total, self._unit, self._clock = title, total, unit, clock
        self._done = 0
        self._lines = False
        self._bar: Progress | None = None
        if not shown:
            return
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            self._bar = Progress(*columns, _Rate(), TimeRemainingColumn(), console=console, transient=True)
            self._task = self._bar.add_task(title, total=total)
        else:
            self._lines = True
            self._say(title)
        self._start = self._last = clock()

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, count: int, total: int | None = None) -> None:
        """``count`` more parts are done, of ``total`` where that is known better now."""
        self._done += count
        self._total = total or self._total
        if self._bar is not None:
            self._bar.update(self._task, advance=count, total=self._total)
        elif self._lines and self._done < self._total and self._clock() - self._last >= PAUSE:
            self._last = self._clock()
            rate = self._done / (self._last - self._start)
            left = duration((self._total - self._done) / rate)
            self._say(
                f"{self._title}: {self._done:,} of {self._total:,} {self._unit}, {rate:.3g} a second, {left} left"
            )

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    """Parts a second."""

    def render(self, task: Task) -> Any:
        return Text("" if task.speed is None else f"{task.speed:.3g} a second")


def duration(seconds: float) -> str:
    """``seconds`` for people: ``duration(200)`` is ``"3 min 20 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"
