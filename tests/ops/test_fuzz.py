"""Random calls of every operation and backend, in processes that may die: see ``ops/fuzz.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ops import fuzz

BATCH = 1000


def run(first: int, last: int) -> None:
    """The calls with these seeds in a process of its own, which says what died and what was wrong."""
    command = [sys.executable, "-W", "ignore", str(Path(fuzz.__file__)), str(first), str(last)]
    ran = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert f"{last - first} calls" in ran.stdout


def test_some_random_calls() -> None:
    run(0, 300)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 10 * BATCH, BATCH))
def test_ten_thousand_random_calls(first: int) -> None:
    run(first, first + BATCH)


def test_a_dead_process_and_a_wrong_number_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def try_call(seed: int) -> list[str]:
        if seed == 3:
            os.kill(os.getpid(), 9)
        return ["wrong"] if seed == 5 else []

    monkeypatch.setattr(fuzz, "try_call", try_call)
    died, wrong = fuzz.run(0, 8)
    assert len(died) == 1
    assert died[0].startswith("seed 3, ")
    assert died[0].endswith("ended with -9")
    assert wrong == ["wrong"]


def test_the_calls_are_of_every_kind() -> None:
    calls = [fuzz.make_call(seed) for seed in range(600)]
    assert {call.op for call in calls} == {
        "linear_attention", "delta_rule", "linear_scan", "causal_convolution", "softmax",
        "l2_norm", "rms_norm", "gated_rms_norm",
    }  # fmt: skip
    assert 0.2 < sum(bool(call.faults) for call in calls) / len(calls) < 0.5
    named = {name for call in calls for name in call.faults}
    assert named >= {"q", "k", "v", "beta", "log_decay", "state", "cu_seqlens", "chunk_size", "scale", "x", "weight",
                     "bias", "tail", "padding", "index", "block", "log_a", "u", "gate"}  # fmt: skip
