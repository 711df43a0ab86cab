"""Memory: known allocations are found, outputs do not count, and every contender has a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from plait.cli import app as front
from plait.errors import PlaitError
from plait.timing import memory
from plait.timing.memory import LEAST_BYTES, measure_memory
from plait.timing.resident import peak_extra_bytes, resident_bytes
from plait.timing.shapes import Shape

MEGABYTE = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what is resident now")


@linux
def test_a_temporary_is_seen_after_it_is_gone() -> None:
    before = resident_bytes()
    extra = peak_extra_bytes(lambda: torch.ones(128 * MEGABYTE // 4).sum())
    assert 126 * MEGABYTE < extra < 150 * MEGABYTE
    assert resident_bytes() - before < 64 * MEGABYTE


@linux
def test_an_earlier_peak_is_forgotten() -> None:
    peak_extra_bytes(lambda: torch.ones(128 * MEGABYTE // 4).sum())
    assert peak_extra_bytes(lambda: torch.ones(8 * MEGABYTE // 4).sum()) < 64 * MEGABYTE


@linux
def test_growth_is_found_where_there_is_some() -> None:
    # in a process of its own: in one that has freed much before, what is kept may lie where memory was resident
    program = """
from plait.timing.resident import grown_bytes
kept = []
print(grown_bytes(lambda: kept.append(bytearray(b"x") * 2**18), 100))
print(grown_bytes(lambda: bytearray(b"x") * 2**18, 100))
"""
    environment = {**os.environ, **memory.ALLOCATOR}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    leak, nothing = map(int, process.stdout.split())
    assert 24 * MEGABYTE < leak < 40 * MEGABYTE
    assert nothing < 4 * MEGABYTE


@linux
def test_outputs_do_not_count() -> None:
    program = """
from plait.timing import cases, memory, shapes
cases.linear_scan = lambda log_a, u: 2 * log_a + 3 * u
print(memory.extra_bytes("linear_scan", shapes.Shape(1, 16384, 4, 64), "plait", "cpu"))
"""  # 16 MiB a tensor; the output and two gradients are 48 MiB
    environment = {**os.environ, **memory.ALLOCATOR}
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=environment)
    assert abs(int(process.stdout)) < MEGABYTE


def test_every_contender_is_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    sizes = {"plait": 4 * MEGABYTE, "transformers": 12 * MEGABYTE, "softmax (SDPA)": 1}

    def process(operation: str, shape: Shape, name: str, device: str) -> int:
        asked.append(name)
        return sizes[name]

    monkeypatch.setattr(memory, "_in_fresh_process", process)
    peaks = measure_memory([Shape(1, 64, 2, 8)], repeats=2, operations=["delta_rule"])
    assert asked == ["plait", "transformers", "softmax (SDPA)"] * 2  # no loop over tokens
    assert [(peak.peer, peak.ratio) for peak in peaks] == [("transformers", 3.0), ("softmax (SDPA)", 0.25)]
    assert peaks[1].peer_megabytes == LEAST_BYTES / 1e6


def test_a_process_that_fails_is_an_error_that_names_it() -> None:
    with pytest.raises(PlaitError, match="measures nobody failed"):
        memory._in_fresh_process("linear_scan", Shape(1, 8, 1, 4), "nobody", "cpu")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "B1-T200-H2-D8", "--operation", "linear_scan", "--repeats", "2"]
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "memory", *arguments, "--json"])
    assert end.value.code == 0
    rows = json.loads(capsys.readouterr().out)["memory"]
    assert [row["peer"] for row in rows] == ["PyTorch, chunks of 16", "Python loop"]
    for row in rows:
        assert (row["operation"], row["repeats"]) == ("linear_scan", 2)
        assert row["megabytes"] >= LEAST_BYTES / 1e6
