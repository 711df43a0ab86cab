"""Batches: bounded by tokens, halved on memory errors, no item lost or computed twice in the result."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from plait.errors import OptionError
from plait.evaluation.batching import Batches

CPU = torch.device("cpu")


class Machine:
    """Runs batches of at most ``most`` items."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.sizes: list[int] = []

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return [10 * item for item in batch]


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_halved_on_memory_errors(error: Exception) -> None:
    machine = Machine(5, error)
    batches = Batches("auto", CPU)
    assert batches.run(machine, range(40), tokens=1024) == [10 * item for item in range(40)]
    assert machine.sizes[:3] == [16, 8, 4]
    assert set(machine.sizes[2:]) == {4}  # what was too large is not tried again
    assert batches.rows(512) == 8  # remembered in tokens


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(MemoryError):
        Batches(4, CPU).run(Machine(0, MemoryError()), range(3), tokens=8)


def test_other_errors_are_not_swallowed() -> None:
    machine = Machine(1, RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape"):
        Batches(4, CPU).run(machine, range(3), tokens=8)
    assert machine.sizes == [3]


def test_a_given_size_is_kept() -> None:
    machine = Machine(100, MemoryError())
    assert len(Batches(3, CPU).run(machine, range(8), tokens=10**6)) == 8
    assert machine.sizes == [3, 3, 2]
    with pytest.raises(OptionError, match="at least 1"):
        Batches(0, CPU)
