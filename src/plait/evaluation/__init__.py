"""Measurements of a trained model: loss and in-context recall on text, MQAR accuracy, decode speed and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.evaluation.ar_hits import ar_hits
    from plait.evaluation.run import evaluate, train_and_evaluate

__all__ = ["ar_hits", "evaluate", "train_and_evaluate"]

_EXPORTS = {
    "ar_hits": "plait.evaluation.ar_hits",
    "evaluate": "plait.evaluation.run",
    "train_and_evaluate": "plait.evaluation.run",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plait.evaluation' has no attribute {name!r}")
