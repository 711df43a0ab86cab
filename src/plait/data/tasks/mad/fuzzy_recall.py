"""Fuzzy in-context recall: keys and values are several tokens long, and how long must be inferred.

A key is ``key_size`` different ids in some order, a value 1 to ``value_size``. The targets are the tokens of the value
of a key that stood before. The row ends in such a key, whose first showing is at a random place, and is filled in
front with the highest id; its last token is only a target. With V = 10, T = 16 (keys 0..3, values 4..8, filler 9),
keys and values of up to 2::

    input    9 9 9 9 3 0 4 0 3 6 7 0 1 7 3 0      pairs 3 0 -> 4, 0 3 -> 6 7, 0 1 -> 7
    target   . . . . . . . . . . . . . . . 4
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, distinct
from plait.data.tasks.mad.base import MadTask, first_equal, settings

_Motifs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # tokens (rows, n, longest), sizes (rows, n)


@dataclass(frozen=True)
class FuzzyRecall(MadTask):
    """Options of fuzzy recall, beside that of :class:`~plait.data.tasks.mad.base.MadTask`. A row has several queries.

    Args:
        vocab_size: V; below the filler V - 1, the lower half are ids of keys, the upper half of values.
        length: tokens per row T.
        key_size, value_size: longest key and value.
        learn: ``all``: training rows have keys of 1 to ``key_size`` ids and ask for every next token, as published;
            ``answers``: they are like validation and test rows.

    Raises:
        DataError: sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 16, "length": 128, "key_size": 3, "value_size": 3, "examples": 12_800},
        vocab_size=(32, 64, 128),
        length=(256, 512, 1024),
        examples=(6400, 3200, 1600, 800),
    )
    vocab_size: int = 16
    length: int = 128
    key_size: int = 3
    value_size: int = 3
    learn: Literal["all", "answers"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._too_small("key_size", 1, "a key")
        self._too_small("value_size", 1, "a value")
        self._too_small("length", 2 * (self.key_size + self.value_size) + 1, "a pair and its query")
        self._too_small("vocab_size", 1 + 2 * max(self.key_size, self.value_size), "the ids of one key and one value")

    @property
    def _key_ids(self) -> int:
        return (self.vocab_size - 1) // 2

    @property
    def chance(self) -> float:
        """One of the ids of values."""
        return 1 / (self.vocab_size - 1 - self._key_ids)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        tokens, answers = self._tokens(rng, rows, self.key_size)
        return tokens[:, :-1], np.where(answers, tokens, IGNORED)[:, 1:]

    def generate_split(self, rng: np.random.Generator, rows: int, split: str) -> tuple[Ids, Ids]:
        if split != "train" or self.learn == "answers":
            return self.generate(rng, rows)
        tokens, _ = self._tokens(rng, rows, 1)
        return tokens[:, :-1], tokens[:, 1:].copy()

    def _tokens(self, rng: np.random.Generator, rows: int, shortest: int) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """T + 1 tokens per row, and which of them belong to the value of a key that stood before."""
        T, row = self.length, np.arange(rows)
        pairs = -(-T // (shortest + 1))
        keys, key_sizes = self._motifs(rng, (rows, pairs), 0, self._key_ids, shortest, self.key_size)
        values, value_sizes = self._motifs(rng, (rows, pairs), self._key_ids, self.vocab_size - 1, 1, self.value_size)
        # Pair 0 is the one asked about at the end; it is shown in the place of another.
        first = first_equal(_codes(keys, key_sizes, self._key_ids))
        values, value_sizes = values[row[:, None], first], value_sizes[row[:, None], first]
        sizes = key_sizes + value_sizes
        limit = T - sizes[:, 0] - self.key_size - self.value_size  # pairs start before it
        shown = np.concatenate([np.zeros((rows, 1), np.int64), sizes[:, 1:].cumsum(axis=1)], axis=1)[:, :-1]
        place = (shown >= rng.integers(0, limit)[:, None]) & (shown < limit[:, None])
        place = np.where(place.any(axis=1), place.argmax(axis=1), (shown < limit[:, None]).sum(axis=1) - 1)
        order = np.tile(np.arange(1, pairs), (rows, 1))
        already = (first[:, 1:] == 0) & (np.arange(pairs - 1) < place[:, None])
        insert = row[~already.any(axis=1)]
        order[insert, place[insert]] = 0

        order = np.concatenate([order, np.zeros((rows, 1), np.int64)], axis=1)  # the query
        at = row[:, None], order
        keys, key_sizes, values, value_sizes, first = (x[at] for x in (keys, key_sizes, values, value_sizes, first))
        sizes = key_sizes + value_sizes
        start = sizes.cumsum(axis=1) - sizes
        used = start < limit[:, None]
        used[:, -1] = False
        total = np.where(used, sizes, 0).sum(axis=1)
        start[:, -1] = total
        used[:, -1] = True
        start += (T + 1 - total - sizes[:, -1])[:, None]
        again = first_equal(first) < np.arange(pairs)

        tokens = np.full((rows, T + 1), self.vocab_size - 1, np.int32)
        answers = np.zeros((rows, T + 1), np.bool_)
        for motif, motif_sizes, begin in ((keys, key_sizes, start), (values, value_sizes, start + key_sizes)):
            for index in range(motif.shape[2]):
                r, pair = (used & (index < motif_sizes)).nonzero()
                position = begin[r, pair] + index
                tokens[r, position] = motif[r, pair, index]
                if motif is values:
                    answers[r, position] = again[r, pair]
        return tokens, answers

    @staticmethod
    def _motifs(
        rng: np.random.Generator, shape: tuple[int, int], low: int, high: int, shortest: int, longest: int
    ) -> _Motifs:
        """Sizes drawn evenly, and ``longest`` different ids of ``[low, high)`` of which the first ``size`` count."""
        tokens = distinct(rng, shape[0] * shape[1], low, high, longest).astype(np.int64)
        return tokens.reshape(*shape, longest), rng.integers(shortest, longest + 1, shape)


def _codes(tokens: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], ids: int) -> npt.NDArray[np.int64]:
    """A number for each motif that only an equal one shares."""
    places = np.arange(tokens.shape[2])
    digits = np.where(places < sizes[:, :, None], tokens + 1, 0)
    return digits @ (ids + 1) ** places
