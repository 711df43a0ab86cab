"""What holds for every check on a GPU: a CUDA device, and kernels that are compiled once and not tuned."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _device() -> None:
    """Skips where torch sees no CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _untuned_kernels() -> Iterator[None]:
    """Takes the first setting of every Triton kernel: results do not depend on it, and tuning would take minutes."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autotuner, "prune_configs", lambda self, arguments: prune(self, arguments)[:1])
        patch.setattr(Autotuner, "_bench", lambda self, *arguments, config, **named: [0.0, 0.0, 0.0])
        yield
