"""Timing that survives a busy machine: contenders take turns, and only ratios of the same turn are reported."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Contender = Callable[[], object]

#: A sample shorter than this is repeated until it is as long: the clock and the call cost too much otherwise.
_SHORTEST_SAMPLE = 0.005


@dataclass(frozen=True)
class Ratio:
    """How often longer a peer takes: median over turns, with the quartiles as its spread."""

    median: float
    low: float
    high: float


def take_turns(
    contenders: Mapping[str, Contender],
    repeats: int = 7,
    device: str = "cpu",
    shortest: float = _SHORTEST_SAMPLE,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds per call of each contender, one sample a turn, after a warm-up of two calls.

    Args:
        contenders: name -> function without arguments.
        repeats: turns; each turn starts with another contender, so that drift falls on all alike.
        device: device whose queue is emptied before the clock is read.
        shortest: least seconds of a sample; quicker functions are called several times per sample.
        warm_up: False for calls that take long and were warmed up otherwise; a sample is then one call.
    """
    calls = {name: _calls(function, device, shortest) if warm_up else 1 for name, function in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(repeats):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            seconds[name].append(_time(contenders[name], calls[name], device))
    return seconds


def ratio(ours: list[float], peer: list[float]) -> Ratio:
    """The peer's time over ours, turn by turn."""
    ratios = [theirs / mine for mine, theirs in zip(ours, peer, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(statistics.median(ratios), low, high)


def _calls(function: Contender, device: str, shortest: float) -> int:
    _time(function, 1, device)  # the first call compiles, allocates, warms caches
    return max(1, round(shortest / _time(function, 1, device)))


def _time(function: Contender, calls: int, device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize(device)
    return (time.perf_counter() - start) / calls


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
