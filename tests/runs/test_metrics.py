"""The metrics file survives kills and holds every step once."""

from __future__ import annotations

from pathlib import Path

from plait.runs.metrics import FILE, MetricsFile, losses, read_metrics


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, 0)
    for step in (5, 10, 15):
        file.write({"step": step, "loss": 1.0 / step})
    file.write({"step": 15, "validation_loss": 2.0})
    again = MetricsFile(tmp_path, 10)
    assert [record["step"] for record in read_metrics(tmp_path)] == [5, 10]
    again.write({"step": 15, "loss": 0.5})
    assert losses(tmp_path) == [(5, 0.2), (10, 0.1), (15, 0.5)]


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "lo')
    assert losses(tmp_path) == [(5, 1.0)]
    MetricsFile(tmp_path, 10).write({"step": 10, "loss": 0.5})
    assert losses(tmp_path) == [(5, 1.0), (10, 0.5)]


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
