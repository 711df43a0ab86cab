"""Timings: turns are fair, ratios are those of the same turn, unequal results are not compared."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch

from plait.benchmarks import operations
from plait.benchmarks.operations import Shape, cases, require_device, time_operations
from plait.benchmarks.timing import ratio, take_turns
from plait.cli import app as front
from plait.errors import BackendUnavailable, PlaitError

TINY = Shape(1, 40, 2, 8)


def test_turns_rotate_and_each_contender_has_one_sample_a_turn() -> None:
    called: list[str] = []
    seconds = take_turns({name: lambda name=name: called.append(name) for name in "abc"}, repeats=3, shortest=0)
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(called[6:]) == "abcbcacab"  # after two warm-up calls each


def test_a_quick_function_is_called_often_enough() -> None:
    calls = 0

    def quick() -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)

    seconds = take_turns({"quick": quick}, repeats=2, shortest=0.01)
    assert 8 <= calls <= 2 + 2 * 10
    assert all(0.001 <= sample < 0.1 for sample in seconds["quick"])


def test_ratio_is_taken_turn_by_turn() -> None:
    drifting = ratio([1.0, 2.0, 4.0, 8.0], [3.0, 6.0, 12.0, 24.0])
    assert (drifting.median, drifting.low, drifting.high) == (3.0, 3.0, 3.0)
    spread = ratio([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)


def test_every_operation_is_timed_against_its_peers_in_both_directions() -> None:
    heard: list[str] = []
    timings = time_operations([TINY], repeats=2, announce=heard.append)
    assert len(heard) == 4
    found = {(timing.operation, timing.peer) for timing in timings}
    assert ("delta_rule, decay per head", "transformers") in found
    assert {peer for _, peer in found} == {"Python loop", "transformers", "softmax (SDPA)"}
    for timing in timings:
        assert timing.ratio_low <= timing.ratio <= timing.ratio_high
        assert timing.shape == "B1-T40-H2-D8"
        assert timing.backend == "torch"
        assert (timing.gflops > 0) == (timing.direction == "forward")
    assert len(timings) == 2 * len(found)


def test_a_peer_with_another_result_stops_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases(TINY, "cpu")[0]
    wrong = dataclasses.replace(case, same={"wrong": lambda *inputs: case.function(*inputs) * 1.01})
    monkeypatch.setattr(operations, "cases", lambda shape, device: [wrong])
    with pytest.raises(PlaitError, match="plait and wrong differ by 1"):
        time_operations([TINY], repeats=2)


def test_long_loops_are_left_out() -> None:
    peers = cases(Shape(1, operations.LONGEST_LOOP + 1, 1, 2), "cpu")[0].same
    assert set(peers) == {"transformers"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_error_with_a_mend() -> None:
    with pytest.raises(BackendUnavailable, match="--device cpu"):
        require_device("cuda")


def test_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(operations.SIZES, "small", [TINY])
    with pytest.raises(SystemExit) as end:
        front.main(["bench", "ops", "--json"])
    assert end.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["machine"]["device"] == "cpu"
    assert result["ceilings"]["matmul GFLOP/s"] > 0
    assert all(row["repeats"] == 7 for row in result["timings"])


def test_the_table_says_what_the_ratio_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timing = time_operations([TINY], repeats=2)[0]
    monkeypatch.setattr(operations, "time_operations", lambda *_: [timing])
    with pytest.raises(SystemExit):
        front.main(["bench", "ops"])
    text = capsys.readouterr().out
    assert "above 1, plait is faster" in text
    assert f"{timing.ratio:.2f}" in text.splitlines()[-1]
