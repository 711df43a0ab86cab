"""``metrics.jsonl``: one line per logged step, written as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records to ``metrics.jsonl`` of a run.

    Args:
        folder: the run's folder.
        step: step the run goes on from; records of later steps, and a line cut off by a kill, are dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        kept = [record for record in read_metrics(folder) if record["step"] <= step]
        partial = self.path.with_name(f".partial-{FILE}")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(partial, self.path)

    def write(self, record: Mapping[str, float]) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Records of a run, oldest first; a last line that a kill cut off is left out."""
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline, so the last piece is never one


def losses(folder: Path) -> list[tuple[int, float]]:
    """Logged training losses as (step, loss)."""
    return [(int(record["step"]), record["loss"]) for record in read_metrics(folder) if "loss" in record]
