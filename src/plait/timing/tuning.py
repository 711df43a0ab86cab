"""Triton tunes a kernel by compiling and timing every setting that its author listed: minutes for one layer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def few_settings(most: int | None) -> Iterator[None]:
    """Within, every Triton kernel is tuned over a few of its settings, evenly spread over its author's list.

    Results do not depend on it; times may. Without Triton it does nothing.

    Args:
        most: settings tried for a kernel; 1 takes the first without timing it, None tries all.
    """
    if most is None or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.autotuner import Autotuner

    prune, measure = Autotuner.prune_configs, Autotuner._bench

    def pruned(self: Autotuner, arguments: dict[str, Any]) -> list[Any]:
        return spread(prune(self, arguments), most)

    Autotuner.prune_configs = pruned
    if most == 1:
        Autotuner._bench = lambda self, *arguments, config, **named: [0.0, 0.0, 0.0]
    try:
        yield
    finally:
        Autotuner.prune_configs, Autotuner._bench = prune, measure


def spread(settings: list[Any], most: int) -> list[Any]:
    """The first of ``settings`` and others at even distances, ``most`` at the most."""
    count = min(most, len(settings))
    return [settings[index * len(settings) // count] for index in range(count)]
