"""Benchmarks in words: a prompt, what the model should say, and a score; kind ``benchmark`` of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plait import catalog
from plait.benchmarks.base import Benchmark, Prompt

__all__ = ["Benchmark", "Prompt", "build_benchmark"]


def build_benchmark(name: str, options: Mapping[str, Any]) -> Benchmark:
    """The benchmark of the catalogue with these options.

    Raises:
        CatalogError: no such benchmark.
        OptionError: an unknown option or a value of the wrong type.
        DataError: options that do not fit together, or data that cannot be read.
    """
    benchmark: type[Benchmark] = catalog.get(name, "benchmark").load()
    return benchmark.parse(name, options)
