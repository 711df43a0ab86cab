"""Trains runs one after the other in every process that torchrun starts: ``distributed_run.py JOBS.json``.

A job is ``{"config": ..., "folder": ...}`` and may hold ``"stop": N`` (the first process alone is told to stop in the
middle of step N) or ``"kill": N`` (the last process dies by SIGKILL there). What each process saw is written to
``FOLDER/seen-RANK.json``: the rows it read, its validation losses, and how the run ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from plait.data.tasks import TaskDataset
from plait.errors import PlaitError
from plait.runs.config import RunConfig
from plait.training.runner import Interrupted, train
from plait.training.trainer import PlaitTrainer

RANK, PROCESSES = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
TRAINING_STEP, EVALUATE, ROWS = PlaitTrainer.training_step, PlaitTrainer.evaluate, TaskDataset.__getitems__


def run(job: dict[str, Any]) -> None:
    """Train one job, with what it asks for patched in."""
    seen: dict[str, Any] = {"rows": [], "validation": [], "sharded": None, "shares": 1.0, "told": False}

    def training_step(self: PlaitTrainer, *args: Any) -> Any:
        step = self.state.global_step + 1
        if step == job.get("stop") and RANK == 0 and not seen["told"]:
            seen["told"] = True
            os.kill(os.getpid(), signal.SIGTERM)
        if step == job.get("kill") and RANK == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        seen["sharded"] = self.sharded
        local = sum(getattr(p, "_local_tensor", p).numel() for p in self.network.parameters())
        seen["shares"] = local / sum(p.numel() for p in self.network.parameters())
        return TRAINING_STEP(self, *args)

    def evaluate(self: PlaitTrainer, *args: Any, **options: Any) -> dict[str, float]:
        metrics = EVALUATE(self, *args, **options)
        seen["validation"].append(metrics["eval_loss"])
        return metrics

    def rows(self: TaskDataset, indices: list[int]) -> Any:
        seen["rows"] += indices
        return ROWS(self, indices)

    PlaitTrainer.training_step = training_step  # type: ignore[method-assign]
    PlaitTrainer.evaluate = evaluate  # type: ignore[method-assign, assignment]
    TaskDataset.__getitems__ = rows  # type: ignore[method-assign]
    folder = Path(job["folder"])
    try:
        train(RunConfig.model_validate(job["config"]), folder, progress=False)
        seen["end"] = "finished"
    except Interrupted as stop:
        seen["end"] = f"stopped at {stop.step}"
    except PlaitError as error:
        seen["end"] = str(error)
    (folder / f"seen-{RANK}.json").write_text(json.dumps(seen), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        run(one)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
