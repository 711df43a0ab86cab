"""Lag: say the token that stood so many positions before; the memory task of Jaeger (2002), on token ids.

The simplest thing that attention does by position alone: a head that looks one token back is half of an induction
circuit, and learning it first shortens the plateau before associative recall is learnt. With V = 8 and lag 1::

    input    5 2 2 7 0 3
    target   . 5 2 2 7 0
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plait.data.tasks.base import IGNORED, Ids, Task
from plait.errors import DataError


@dataclass(frozen=True)
class Lag(Task):
    """Options of the lag task.

    Args:
        vocab_size: V; all ids are drawn uniformly.
        length: tokens per row.
        lag: positions back, at least 1.
    """

    vocab_size: int = 256
    length: int = 64
    lag: int = 1

    def __post_init__(self) -> None:
        if self.lag < 1 or self.length <= self.lag:
            raise DataError(f"lag: lag={self.lag} must be at least 1 and below length={self.length}.")
        if self.vocab_size < 2:
            raise DataError(f"lag: vocab_size={self.vocab_size} must be at least 2.")

    @property
    def chance(self) -> float:
        """One of the ids."""
        return 1 / self.vocab_size

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        inputs = rng.integers(0, self.vocab_size, (rows, self.length), dtype=np.int32)
        targets = np.full_like(inputs, IGNORED)
        targets[:, self.lag :] = inputs[:, : -self.lag]
        return inputs, targets
