"""Training: run files, the resumable runner, and what the Trainer of transformers does not already do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.runs.config import RunConfig, load_run_config
    from plait.training.hooks import MixerCallback, after_step
    from plait.training.runner import Interrupted, TrainResult, train

__all__ = ["Interrupted", "MixerCallback", "RunConfig", "TrainResult", "after_step", "load_run_config", "train"]

_EXPORTS = {
    "RunConfig": "plait.runs.config",
    "load_run_config": "plait.runs.config",
    "MixerCallback": "plait.training.hooks",
    "after_step": "plait.training.hooks",
    "Interrupted": "plait.training.runner",
    "TrainResult": "plait.training.runner",
    "train": "plait.training.runner",
}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'plait.training' has no attribute {name!r}")
