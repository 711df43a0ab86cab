"""Multi-query associative recall (MQAR): pairs of key and value, then each key again; what was its value?

Arora et al., "Zoology: Measuring and Improving Recall in Efficient Language Models" (2312.04927); also the recall
probe of "Simple linear attention language models balance the recall-throughput tradeoff" (2402.18668). A row is
``k1 v1 ... kK vK`` followed by T - 2K positions in which every key stands once more; the target *on* that position is
the key's value. With V = 12, K = 2, T = 16 and zeros as fillers::

    input    2 8 4 7 0 0 4 0 0 0 0 0 2 0 0 0
    target   . . . . . . 7 . . . . . 8 . . .

The compositional variant of the official code (HazyResearch/zoology, ``compositional_ar.py``) has keys of two tokens
from a grid, so that neither token alone tells the value; the target stands on the second one. With V = 18, K = 4::

    input    2 7 14 2 9 12 4 7 17 4 9 15 2 9  0 0 0 0 4 9  0 2 7  0 4 7  0 0
    target   . . .  . . .  . . .  . . .  . 12 . . . . . 15 . . 14 . . 17 . .
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, Task, distinct
from plait.errors import DataError


class Setting(NamedTuple):
    """One part of a mixture: rows of ``length`` tokens with ``pairs`` pairs, as often as ``weight`` says."""

    length: int
    pairs: int
    weight: float = 1.0


_PUBLISHED = {"vocab_size": 8192, "power": 0.01, "passes": 1, "forgetting": 0}
_FIGURE_2 = {**_PUBLISHED, "random_fillers": False, "key_tokens": 1}
_BASED = {**_PUBLISHED, "random_fillers": True, "key_tokens": 1}
_COMPOSITIONAL = {**_PUBLISHED, "random_fillers": True, "key_tokens": 2}


@dataclass(frozen=True)
class MQAR(Task):
    """Options of MQAR.

    The presets are settings of the official code (HazyResearch/zoology). ``zoology-fig2`` is figure 2 of Zoology at
    length 64; ``zoology-fig2-128``, ``-256`` and ``-512`` are its other lengths, each a run of its own that is tested
    as it is trained. ``based`` is the training mixture of the Based paper's recall figure, weighted by numbers of rows,
    and ``based-test`` its seven tests, some longer than any training row. ``compositional`` and ``compositional-test``
    are the same for keys of two tokens.

    Args:
        vocab_size: V; keys are drawn from 1..V/2-1, values from V/2..V-1, both without repetition in a row.
        length: tokens per row T, even.
        pairs: keys per row K; ``4 K <= T``.
        power: a; a query's distance from the context is drawn without replacement with weight ``a i^(a - 1)`` for
            the i-th place: 0.01 puts most queries early, 1 spreads them evenly.
        random_fillers: fill the other positions with uniform ids of the whole vocabulary, else with 0.
        passes: times that the context is shown.
        forgetting: keys that are written a second time, after the context, with another value; the last one counts.
        key_tokens: 2 for the compositional variant: K is a square, the keys are all pairs of sqrt(K) first tokens from
            1..V/3-1 and sqrt(K) second tokens from the next V/3 ids, values come from the rest, and ``6 K <= T``.
        mixture: several ``[length, pairs]`` or ``[length, pairs, weight]`` instead of one; each run of 256 rows has
            one setting, so that batches need no filling where 256 is a multiple of their size.

    Raises:
        DataError: sizes that do not fit together; the message says what would.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "zoology-fig2": {**_FIGURE_2, "length": 64, "pairs": 4},
        "zoology-fig2-128": {**_FIGURE_2, "length": 128, "pairs": 8},
        "zoology-fig2-256": {**_FIGURE_2, "length": 256, "pairs": 16},
        "zoology-fig2-512": {**_FIGURE_2, "length": 512, "pairs": 64},
        "based": {
            **_BASED,
            "mixture": [(64, 4, 100_000), (128, 8, 20_000), (256, 16, 20_000), (256, 32, 20_000), (256, 64, 20_000)],
        },
        "based-test": {
            **_BASED,
            "mixture": [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)],
        },
        "compositional": {
            **_COMPOSITIONAL,
            "mixture": [(64, 4, 100_000), (128, 9, 20_000), (256, 16, 20_000), (256, 25, 20_000), (256, 36, 20_000)],
        },
        "compositional-test": {
            **_COMPOSITIONAL,
            "mixture": [(64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)],
        },
    }

    vocab_size: int = 8192
    length: int = 64
    pairs: int = 4
    power: float = 0.01
    random_fillers: bool = True
    passes: int = 1
    forgetting: int = 0
    key_tokens: int = 1
    mixture: Sequence[Setting] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixture", tuple(Setting(*setting) for setting in self.mixture))
        if self.power <= 0:
            raise DataError(f"MQAR: power={self.power} must be above 0.")
        if self.passes < 1:
            raise DataError(f"MQAR: passes={self.passes} must be at least 1.")
        if self.key_tokens not in (1, 2):
            raise DataError(f"MQAR: key_tokens={self.key_tokens} must be 1 or 2.")
        for length, pairs, weight in self.settings:
            if pairs < 1 or not 0 <= self.forgetting <= pairs:
                raise DataError(f"MQAR: pairs={pairs} must be at least 1 and forgetting={self.forgetting} in 0..pairs.")
            side = isqrt(pairs)
            if self.key_tokens == 2 and side**2 != pairs:
                raise DataError(
                    f"MQAR: pairs={pairs} must be a square for key_tokens=2; use {side**2} or {(side + 1) ** 2}."
                )
            if length % 2:
                raise DataError(f"MQAR: length={length} must be even; use {length + 1}.")
            needed = self._slot * (self._context_pairs(pairs) + pairs)
            if needed > length:
                rule = f"{2 * self._slot} x pairs" if needed == 2 * self._slot * pairs else "context and queries"
                raise DataError(
                    f"MQAR: length={length} is too short for pairs={pairs}: {rule} = {needed} must fit; "
                    f"use length >= {needed + needed % 2} or fewer pairs."
                )
            most = max((pairs if self.key_tokens == 1 else side) + 1, pairs + self.forgetting)
            if self.vocab_size < self._slot * most:
                raise DataError(
                    f"MQAR: vocab_size={self.vocab_size} has too few keys and values for pairs={pairs}; "
                    f"use vocab_size >= {self._slot * most}."
                )
            if not weight > 0:
                raise DataError(f"MQAR: weight={weight} of the mixture must be above 0.")

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(vocab_size=64, length=64, pairs=8)

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """Every eighth token is a key of the context."""
        return {"length": length, "pairs": max(1, length // 8), "mixture": ()}

    @property
    def single_settings(self) -> list[MQAR]:
        """One task for each setting of the mixture."""
        return [replace(self, length=setting.length, pairs=setting.pairs, mixture=()) for setting in self.settings]

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
        return 1 / (self.vocab_size - self._first_value)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows of one setting: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        setting = self.settings[0]
        if len(self.settings) > 1:
            weights = np.array([setting.weight for setting in self.settings])
            setting = self.settings[rng.choice(len(self.settings), p=weights / weights.sum())]
        T, K, V = setting.length, setting.pairs, self.vocab_size
        row = np.arange(rows)[:, None]

        keys = self._keys(rng, rows, K)
        values = distinct(rng, rows, self._first_value, V, K + self.forgetting)
        context = np.tile(_pairs(keys, values[:, :K]), (1, self.passes))
        answers = values[:, :K].copy()
        if self.forgetting:
            again = distinct(rng, rows, 0, K, self.forgetting)
            answers[row, again] = values[:, K:]
            context = np.concatenate([context, _pairs(keys[row, again], values[:, K:])], axis=1)

        start = context.shape[1]
        queries = start + self._slot * _gaps(rng, rows, (T - start) // self._slot, K, self.power)
        inputs = rng.integers(0, V, (rows, T), dtype=np.int32) if self.random_fillers else np.zeros((rows, T), np.int32)
        targets = np.full((rows, T), IGNORED, np.int32)
        inputs[:, :start] = context
        for place in range(self.key_tokens):
            inputs[row, queries + place] = keys[:, :, place]
        targets[row, queries + self.key_tokens - 1] = answers
        return inputs, targets

    def _keys(self, rng: np.random.Generator, rows: int, count: int) -> Ids:
        """``(rows, count, key_tokens)``, different in a row."""
        if self.key_tokens == 1:
            return distinct(rng, rows, 1, self._first_value, count)[:, :, None]
        side, third, row = isqrt(count), self.vocab_size // 3, np.arange(rows)[:, None]
        first = distinct(rng, rows, 1, third, side)
        second = distinct(rng, rows, third, 2 * third, side)
        cell = distinct(rng, rows, 0, count, count)
        return np.stack([first[row, cell // side], second[row, cell % side]], axis=2)

    @property
    def _slot(self) -> int:
        """Tokens of a pair; queries stand at multiples of it after the context."""
        return self.key_tokens + 1

    @property
    def _first_value(self) -> int:
        return self.key_tokens * (self.vocab_size // (self.key_tokens + 1))

    def _context_pairs(self, pairs: int) -> int:
        return pairs * self.passes + self.forgetting


def _pairs(keys: Ids, values: Ids) -> Ids:
    """``key value key value ...`` from keys ``(rows, count, key_tokens)`` and values ``(rows, count)``."""
    return np.concatenate([keys, values[:, :, None]], axis=2).reshape(len(keys), -1)


def _gaps(rng: np.random.Generator, rows: int, space: int, count: int, power: float) -> npt.NDArray[np.int64]:
    """``count`` draws without replacement from ``range(space)`` with ``p_i`` proportional to ``a i^(a - 1)``, i from 1.

    Exponential clocks with rates p ring in the order of successive draws without replacement, which is what
    ``numpy.random.choice(replace=False, p=p)`` returns for one row.
    """
    weights = power * np.arange(1, space + 1, dtype=np.float64) ** (power - 1)
    clocks = rng.standard_exponential((rows, space)) / weights
    return np.argsort(clocks, axis=1)[:, :count]
