"""Tiny runs that train in a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plait.runs.config import RunConfig


@pytest.fixture
def run_config() -> Callable[..., RunConfig]:
    """A factory: ``run_config(steps=4, model={...})`` changes sections or keys of ``training``."""

    def make(
        model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, seed: int = 0, **training: Any
    ) -> RunConfig:
        mqar = {"task": "mqar", "length": 16, "options": {"vocab_size": 32, "pairs": 2}}
        values = {
            "seed": seed,
            "model": {"hidden_size": 32, "num_hidden_layers": 2, "ratio": "1:1", "intermediate_size": 32}
            | (model or {}),
            "data": data or mqar,
            "training": {"steps": 8, "batch_size": 4, "warmup_steps": 2, "save_every": 4, "log_every": 2} | training,
            "evaluate": {"limit": 8},
        }
        return RunConfig.model_validate(values)

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text long enough for three splits."""
    path = tmp_path / "text.txt"
    lines = [f"Line {i}: the answer to {i} times {i % 7} is {i * (i % 7)}.\n" for i in range(400)]
    path.write_text("".join(lines), encoding="utf-8")
    return path
