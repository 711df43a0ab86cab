"""Standard task sets through lm-eval, with its prompts, metrics and scores; contexts are computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.evaluation.harness.run import run_harness

__all__ = ["run_harness"]


def __getattr__(name: str) -> Any:
    if name == "run_harness":
        from plait.evaluation.harness.run import run_harness

        return run_harness
    raise AttributeError(f"module 'plait.evaluation.harness' has no attribute {name!r}")
