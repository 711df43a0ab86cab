"""Several sources learnt together, each as often as its weight says, and in its part of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from plait.data.corpus import SPLITS
from plait.errors import DataError

#: Consecutive rows that come from one source, so that most batches need no filling.
GROUP = 32


class MixtureDataset(Dataset[Any]):
    """Rows of several datasets in turn; row ``i`` depends on the seed, the shares and ``i`` alone.

    Args:
        parts: a dataset for each source, of at least as many rows as ``choices`` takes from it.
        choices: the source of each group of 32 rows, see :func:`choose`.
        samples: number of rows.
    """

    def __init__(self, parts: Sequence[Dataset[Any]], choices: np.ndarray, samples: int) -> None:
        self.parts = parts
        self.samples = samples
        self._choices = choices
        self._places = np.zeros(len(choices), np.int64)  # groups of the same source before this one
        for part in range(len(parts)):
            mine = choices == part
            self._places[mine] = np.arange(mine.sum())

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> Any:
        """A row as its source gives it."""
        if not 0 <= i < self.samples:
            raise IndexError(f"row {i} of {self.samples}")
        group, row = divmod(i, GROUP)
        return self.parts[self._choices[group]][int(self._places[group]) * GROUP + row]


def choose(shares: Sequence[tuple[float, float, float]], samples: int, seed: int, split: str) -> np.ndarray:
    """The source of each group of 32 rows.

    Args:
        shares: of each source its weight, and the fractions of the rows at which it starts and ends.
        samples: number of rows.
        seed, split: of the choice.

    Returns:
        ``(ceil(samples / 32),)`` indices of ``shares``.
    """
    groups = -(-samples // GROUP)
    when = np.arange(groups)[:, None] * GROUP / samples
    weights, starts, ends = np.array(shares, dtype=np.float64).T
    odds = np.cumsum(weights * ((starts <= when) & (when < ends)), axis=1)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed % 2**64, SPLITS.index(split)])))
    draws = rng.random(groups) * odds[:, -1]
    choices: np.ndarray = (odds <= draws[:, None]).sum(axis=1)
    return choices


def check_shares(shares: Sequence[tuple[float, float, float]]) -> None:
    """Raise :class:`DataError` where at some moment of the training no source is active."""
    for moment in sorted({0.0, *(end for _, _, end in shares if end < 1)}):
        if not any(start <= moment < end for _, start, end in shares):
            raise DataError(
                f"data.mixture: nothing is learnt at {moment:g} of the training; let a part start there or end later."
            )
