"""What holds for every test: one thread, no network, fixed seeds, Ctrl-C that arrives, unwritten buffers that show."""

from __future__ import annotations

import os
import signal
import threading

# Before torch and the Hugging Face libraries are imported; child processes inherit it.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    WANDB_MODE="disabled",
)
os.environ.pop("COLUMNS", None)  # tables are as wide as they want to be

# A shell starts background jobs with Ctrl-C ignored, and commands under test would inherit that.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch

from numerics import shifted_memory

torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plain-memory",
        action="store_true",
        help="Leave loaded weights where they lie; by default they are shifted and products with them round otherwise.",
    )


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds the global generator and restores what a test may change for the tests after it."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(True)


@pytest.fixture(autouse=True)
def _poisoned_buffers() -> Iterator[None]:
    """Fills uninitialised memory with NaN, so that an output nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def _shifted_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shows on every machine what expects equal bits from unequal memory."""
    with nullcontext() if request.config.getoption("--plain-memory") else shifted_memory():
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(0)
