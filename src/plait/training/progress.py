"""The progress of a run on stderr: a bar in a terminal, a line now and then in a file."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback

from plait.training.trainer import PlaitTrainer

#: Seconds between lines where there is no terminal.
LINE_EVERY = 15.0


class ProgressCallback(TrainerCallback):
    """Shows step, loss, tokens per second and the time left.

    Args:
        steps: optimiser steps of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.trainer: PlaitTrainer | None = None
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._first = self._step = 0
        self._tokens = 0
        self._began = self._shown = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        self._first, self._tokens = state.global_step, self.trainer.tokens
        self._began = self._shown = time.perf_counter()
        if self.console.is_terminal:
            columns = (
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console, auto_refresh=False)
            self._task = self._bar.add_task("", total=self.steps, completed=self._first, loss="-", speed="-")
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now = time.perf_counter()
        interval = LINE_EVERY if self._bar is None else 0.5
        self._step = state.global_step
        if now - self._shown < interval and self._step < self.steps:
            return
        self._shown = now
        assert self.trainer is not None
        elapsed = now - self._began
        loss = f"{self.trainer.last_loss:.3f}"
        speed = f"{(self.trainer.tokens - self._tokens) / elapsed:,.0f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._step, loss=loss, speed=speed)
            self._bar.refresh()
            return
        left = elapsed / (self._step - self._first) * (self.steps - self._step)
        line = f"step {self._step}/{self.steps}  loss {loss}  {speed} tokens/s  {left:.0f} s left"
        self.console.print(line, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
