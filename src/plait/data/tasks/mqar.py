"""Multi-query associative recall (MQAR): pairs of key and value, then each key again; what was its value?

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (2312.04927); also the recall
probe of "Simple linear attention language models balance the recall-throughput tradeoff" (2402.18668). A row is
``k1 v1 ... kK vK`` followed by T - 2K positions in which every key stands once more; the target *on* that position is
the key's value. With V = 12, K = 2, T = 16 and zeros as fillers::

    input    2 8 4 7 0 0 4 0 0 0 0 0 2 0 0 0
    target   . . . . . . 7 . . . . . 8 . . .
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, Task, distinct
from plait.errors import DataError


class Setting(NamedTuple):
    """One part of a mixture: rows of ``length`` tokens with ``pairs`` pairs, as often as ``weight`` says."""

    length: int
    pairs: int
    weight: float = 1.0


@dataclass(frozen=True)
class MQAR(Task):
    """Options of MQAR.

    Args:
        vocab_size: V; keys are drawn from 1..V/2-1, values from V/2..V-1, both without repetition in a row.
        length: tokens per row T, even.
        pairs: keys per row K; ``4 K <= T``.
        power: a; a query's distance from the context is drawn without replacement with weight ``a i^(a - 1)`` for
            the i-th place: 0.01 puts most queries early, 1 spreads them evenly.
        random_fillers: fill the other positions with uniform ids of the whole vocabulary, else with 0.
        passes: times that the context is shown.
        forgetting: keys that are written a second time, after the context, with another value; the last one counts.
        mixture: several ``[length, pairs]`` or ``[length, pairs, weight]`` instead of one; each run of 256 rows has
            one setting, so that batches need no filling where 256 is a multiple of their size.

    Raises:
        DataError: sizes that do not fit together; the message says what would.
    """

    vocab_size: int = 8192
    length: int = 64
    pairs: int = 4
    power: float = 0.01
    random_fillers: bool = True
    passes: int = 1
    forgetting: int = 0
    mixture: Sequence[Setting] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixture", tuple(Setting(*setting) for setting in self.mixture))
        if self.power <= 0:
            raise DataError(f"MQAR: power={self.power} must be above 0.")
        if self.passes < 1:
            raise DataError(f"MQAR: passes={self.passes} must be at least 1.")
        for length, pairs, weight in self.settings:
            if pairs < 1 or not 0 <= self.forgetting <= pairs:
                raise DataError(f"MQAR: pairs={pairs} must be at least 1 and forgetting={self.forgetting} in 0..pairs.")
            if length % 2:
                raise DataError(f"MQAR: length={length} must be even; use {length + 1}.")
            needed = 2 * self._context_pairs(pairs) + 2 * pairs
            if needed > length:
                rule = "4 x pairs" if needed == 4 * pairs else "context and queries"
                raise DataError(
                    f"MQAR: length={length} is too short for pairs={pairs}: {rule} = {needed} must fit; "
                    f"use length >= {needed} or fewer pairs."
                )
            most = max(pairs + 1, pairs + self.forgetting)
            if self.vocab_size < 2 * most:
                raise DataError(
                    f"MQAR: vocab_size={self.vocab_size} has too few keys and values for pairs={pairs}; "
                    f"use vocab_size >= {2 * most}."
                )
            if not weight > 0:
                raise DataError(f"MQAR: weight={weight} of the mixture must be above 0.")

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The mixture, or the one setting."""
        return tuple(self.mixture) or (Setting(self.length, self.pairs),)

    @property
    def longest(self) -> int:
        """Tokens in the longest row."""
        return max(setting.length for setting in self.settings)

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows of one setting: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        setting = self.settings[0]
        if len(self.settings) > 1:
            weights = np.array([setting.weight for setting in self.settings])
            setting = self.settings[rng.choice(len(self.settings), p=weights / weights.sum())]
        T, K, V = setting.length, setting.pairs, self.vocab_size
        row = np.arange(rows)[:, None]

        keys = distinct(rng, rows, 1, V // 2, K)
        values = distinct(rng, rows, V // 2, V, K + self.forgetting)
        pairs = np.stack([keys, values[:, :K]], axis=2).reshape(rows, 2 * K)
        context = np.tile(pairs, (1, self.passes))
        answers = values[:, :K].copy()
        if self.forgetting:
            again = distinct(rng, rows, 0, K, self.forgetting)
            answers[row, again] = values[:, K:]
            rewritten = np.stack([keys[row, again], values[:, K:]], axis=2).reshape(rows, -1)
            context = np.concatenate([context, rewritten], axis=1)

        start = context.shape[1]
        queries = start + 2 * _gaps(rng, rows, (T - start) // 2, K, self.power)
        inputs = rng.integers(0, V, (rows, T), dtype=np.int32) if self.random_fillers else np.zeros((rows, T), np.int32)
        targets = np.full((rows, T), IGNORED, np.int32)
        inputs[:, :start] = context
        inputs[row, queries] = keys
        targets[row, queries] = answers
        return inputs, targets

    def _context_pairs(self, pairs: int) -> int:
        return pairs * self.passes + self.forgetting


def _gaps(rng: np.random.Generator, rows: int, space: int, count: int, power: float) -> npt.NDArray[np.int64]:
    """``count`` draws without replacement from ``range(space)`` with ``p_i`` proportional to ``a i^(a - 1)``, i from 1.

    Exponential clocks with rates p ring in the order of successive draws without replacement, which is what
    ``numpy.random.choice(replace=False, p=p)`` returns for one row.
    """
    weights = power * np.arange(1, space + 1, dtype=np.float64) ** (power - 1)
    clocks = rng.standard_exponential((rows, space)) / weights
    return np.argsort(clocks, axis=1)[:, :count]
