"""RULER: thirteen tasks whose prompts fill a given length (Hsieh et al., 2404.06654), with NVIDIA's semantics.

Each task is a benchmark of the catalogue under its published name. All thirteen are needed for the score of a length.
"""

from __future__ import annotations

from plait.benchmarks.ruler.scoring import TASKS, effective_length, overall

__all__ = ["TASKS", "effective_length", "overall"]
