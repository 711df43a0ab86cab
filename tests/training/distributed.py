"""Runs on several processes, for the tests beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from plait.runs.config import RunConfig
from plait.runs.metrics import read_metrics

DRIVER = Path(__file__).with_name("distributed_run.py")
#: Softmax attention, a delta rule, and a mixer whose layers share a parameter of the model; tied embeddings.
MODEL = {
    "hidden_size": 32,
    "layer_types": ["gated_deltanet", "hgrn", "attention"],
    "intermediate_size": 32,
    "tie_word_embeddings": True,
}
#: Rows with unequal numbers of targets, so that a mean of the processes' means would differ.
DATA = {"task": "mqar", "length": 32, "options": {"vocab_size": 32, "mixture": [[32, 1], [32, 4]]}}


def config(data: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    """A tiny run of 16 rows a step whose clip always bites."""
    values = {"steps": 20, "batch_size": 4, "accumulate": 4, "warmup_steps": 2, "save_every": 5, "log_every": 1}
    values |= {"clip": 0.1, "validate_every": 10} | training
    return RunConfig.model_validate(
        {"model": model or MODEL, "data": data or DATA, "training": values, "evaluate": {"limit": 12}}
    )


def launch(processes: int, *jobs: tuple[RunConfig, Path, dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """Run jobs (configuration, folder, what else ``distributed_run.py`` knows) with torchrun."""
    file = jobs[0][1].parent / f"jobs-{jobs[0][1].name}-{processes}.json"
    file.write_text(
        json.dumps([{"config": c.model_dump(mode="json"), "folder": str(f), **other} for c, f, other in jobs])
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, str(DRIVER), str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def seen(folder: Path, process: int) -> dict[str, Any]:
    """What a process of a run saw."""
    content: dict[str, Any] = json.loads((folder / f"seen-{process}.json").read_text())
    return content


def numbers(folder: Path, key: str) -> list[float]:
    """One quantity of a run's log, by step."""
    return [record[key] for record in read_metrics(folder) if key in record]


def largest_difference(first: Path, second: Path) -> float:
    """Between the weights of two finished runs."""
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) if a[name].numel() else 0.0 for name in a)


def equal(first: Path, second: Path) -> bool:
    """Whether two finished runs have the same weights, bit for bit."""
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
