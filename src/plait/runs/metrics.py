"""``metrics.jsonl``: one line per logged step, written as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from plait.errors import TrainingError

FILE = "metrics.jsonl"


class MetricsFile:
    """Appends records to ``metrics.jsonl`` of a run.

    Args:
        folder: the run's folder.
        step: step the run goes on from; records of later steps, and a line cut off by a kill, are dropped.
        checkpoint: a sealed folder with the records up to ``step``, which are taken instead of those in ``folder``.
    """

    def __init__(self, folder: Path, step: int, checkpoint: Path | None = None) -> None:
        self.path = folder / FILE
        kept = [record for record in read_metrics(checkpoint or folder) if record["step"] <= step] if step else []
        partial = self.path.with_name(f".partial-{FILE}")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(partial, self.path)

    def write(self, record: Mapping[str, float]) -> None:
        """Append one record."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Records of a run, oldest first; a last line that a kill cut off is left out.

    Raises:
        TrainingError: a line that is no record; the message names it.
    """
    path = folder / FILE
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")  # a whole line ends in a newline, so the last piece is never one
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["step"], int):
                raise TypeError("its step is no number")
        except (ValueError, KeyError, TypeError):
            raise TrainingError(f"{path}: line {number} is damaged; restore the file, or delete that line.") from None
        records.append(record)
    return records


def losses(folder: Path) -> list[tuple[int, float]]:
    """Logged training losses as (step, loss)."""
    return [(int(record["step"]), record["loss"]) for record in read_metrics(folder) if "loss" in record]
