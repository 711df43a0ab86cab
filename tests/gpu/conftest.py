"""What holds for every check on a GPU: a CUDA device, and kernels that are compiled once and not tuned."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from plait.timing.tuning import few_settings


@pytest.fixture(autouse=True)
def _device() -> None:
    """Skips where torch sees no CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _untuned_kernels() -> Iterator[None]:
    """Takes the first setting of every Triton kernel: results do not depend on it, and tuning would take minutes."""
    with few_settings(1):
        yield
