"""Killed at random moments, or with no room on the disk: afterwards the same command ends with the same result.

``PLAIT_KILLS=100`` sets how often each kind is killed; a failure prints the seed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVER = Path(__file__).with_name("killed.py")
KILLS = int(os.environ.get("PLAIT_KILLS", "5"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL, fork and limits of files are POSIX"),
]


def disturbed(kind: str, folder: Path) -> dict[str, Any]:
    seed = random.Random().randrange(2**32)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(DRIVER), kind, str(folder), str(KILLS), str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    print(command, done.stdout)  # shown when the test fails
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", ["train", "eval", "convert", "study"])
def test_killed_at_random_moments(kind: str, tmp_path: Path) -> None:
    found = disturbed(kind, tmp_path)
    assert found["disturbed"] == KILLS
    assert found["different"] == 0
    assert found["leftovers"] == []


@pytest.mark.parametrize("kind", ["train", "eval", "convert"])
def test_a_disk_that_was_full(kind: str, tmp_path: Path) -> None:
    found = disturbed(f"full-{kind}", tmp_path)
    assert found["disturbed"] == KILLS
    assert found["different"] == 0
    assert found["leftovers"] == []
