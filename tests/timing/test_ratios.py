"""Turns are fair, and ratios are those of the same turn."""

from __future__ import annotations

import time

from plait.timing.ratios import ratio, take_turns


def test_turns_rotate_and_each_contender_has_one_sample_a_turn() -> None:
    called: list[str] = []
    seconds = take_turns({name: lambda name=name: called.append(name) for name in "abc"}, repeats=3, shortest=0)
    assert {name: len(samples) for name, samples in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(called[6:]) == "abcbcacab"  # after two warm-up calls each


def test_long_calls_are_not_warmed_up() -> None:
    called: list[str] = []
    take_turns({name: lambda name=name: called.append(name) for name in "ab"}, repeats=2, warm_up=False)
    assert "".join(called) == "abba"


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
