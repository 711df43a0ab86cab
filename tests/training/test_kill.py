"""SIGKILL at any moment, then the same call: the same weights, bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from plait.runs.metrics import losses

DRIVER = Path(__file__).with_name("killed_run.py")


def trained(folder: Path, *kills: str) -> list[list[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KILL_DELAY": str(random.Random().uniform(0, 0.05))}
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(folder), *kills], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL and fork are POSIX")
def test_killed_runs_end_with_the_same_weights(tmp_path: Path) -> None:
    assert trained(tmp_path / "whole") == [["end", "0", "checkpoint-36", "checkpoint-40"]]
    first, second = random.Random().sample(range(7, 18), 2)
    kills = [f"step:{min(first, second)}", "saving:18", f"step:{18 + second % 6}", "deleting", "outside:32"]
    print("killed at", kills)  # shown when the test fails
    report = trained(tmp_path / "killed", *kills)
    assert [line[0] for line in report] == [*kills, "end"]
    assert [line[1] for line in report[:-2]] == ["-9"] * 4
    assert report[-2][1] in ("-9", "0")  # from outside, the run may just have ended
    assert report[1][2:] == ["checkpoint-6", "checkpoint-12"]  # 18 was not whole
    assert report[-1][1:] == ["0", "checkpoint-36", "checkpoint-40"]
    name = Path("model") / "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".partial*"))
