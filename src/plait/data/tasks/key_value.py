"""Key-value retrieval: pairs of a key and a value, each of several tokens; then a key again; what was its value?

A token-level form of the JSON retrieval of Liu et al., "Lost in the Middle: How Language Models Use Long Contexts"
(2307.03172, section 3). Unlike in MQAR (:mod:`plait.data.tasks.mqar`), a key is known only by all of its tokens, and
the value is written out. A row is ``1 key 2 value`` for every pair, then ``3 key 2 value`` for every queried one;
fillers (0) stand in front. The value's tokens are predicted one by one, each from the row up to the token before it.
With keys of two tokens 4..7, values of two tokens 8..11, two pairs and one query::

    input    0 1 4 6 2 9 11 1 4 7 2 8 9 3 4 6 2  9 11
    target   . . . . . .  . . . . . . . . . . 9 11  .
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from plait.data.tasks.base import Ids, Task
from plait.data.tasks.sentences import (
    alphabets,
    at_the_end,
    distinct_numbers,
    distinct_words,
    next_token_targets,
    words,
)
from plait.errors import DataError

FILLER, PAIR, VALUE, QUERY = range(4)
_MARKS = 4


@dataclass(frozen=True)
class KeyValueRetrieval(Task):
    """Options of key-value retrieval.

    Args:
        vocab_size: V; the lower half of the ids 4..V-1 makes keys, the upper half values.
        length: tokens per row.
        pairs: pairs per row; None for as many as the row and the different keys allow.
        queries: different keys asked at the end, in random order.
        key_tokens: tokens of a key; keys differ within a row.
        value_tokens: tokens of a value; values may be equal.

    Raises:
        DataError: sizes that do not fit together; the message says what would.
    """

    vocab_size: int = 256
    length: int = 128
    pairs: int | None = None
    queries: int = 1
    key_tokens: int = 2
    value_tokens: int = 2

    def __post_init__(self) -> None:
        for name in ("queries", "key_tokens", "value_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"key_value: {name}={getattr(self, name)} must be at least 1.")
        if self.pairs is not None and self.pairs < self.queries:
            raise DataError(f"key_value: pairs={self.pairs} must be at least queries={self.queries}.")
        if self.vocab_size < _MARKS + 2:
            raise DataError(
                f"key_value: vocab_size={self.vocab_size} leaves no id for keys and values; "
                f"use vocab_size >= {_MARKS + 2}."
            )
        wanted = self.queries if self.pairs is None else self.pairs
        needed = (wanted + self.queries) * self._sentence
        if needed > self.length:
            raise DataError(
                f"key_value: length={self.length} is too short for pairs={wanted} and queries={self.queries} of "
                f"{self._sentence} tokens each; use length >= {needed} or fewer pairs."
            )
        if wanted > self._keys:
            raise DataError(
                f"key_value: vocab_size={self.vocab_size} has only {self._keys} different keys of "
                f"key_tokens={self.key_tokens} for pairs={wanted}; use a larger vocabulary or more key_tokens."
            )

    @property
    def chance(self) -> float:
        """One of the ids that values are made of."""
        return 1 / len(self._alphabets[1])

    @property
    def shown(self) -> int:
        """Pairs in a row."""
        return self.pairs or min(self.length // self._sentence - self.queries, self._keys)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        of_keys, of_values = self._alphabets
        keys = distinct_words(rng, rows, self.shown, self.key_tokens, of_keys)
        values = words(rng, rows, self.shown, self.value_tokens, of_values)
        asked = distinct_numbers(rng, rows, self.shown, self.queries)
        row = np.arange(rows)[:, None]
        pairs = _sentences(PAIR, keys, values)
        queries = _sentences(QUERY, keys[row, asked], values[row, asked])
        text = np.concatenate([pairs, queries], axis=1).reshape(rows, -1)
        inputs = at_the_end(text, self.length, FILLER)
        from_end = np.arange(self.length, 0, -1) - 1
        answers = (from_end < self.queries * self._sentence) & (from_end % self._sentence < self.value_tokens)
        return inputs, next_token_targets(inputs, answers)

    @property
    def _alphabets(self) -> list[range]:
        return alphabets(_MARKS, self.vocab_size, 2)

    @property
    def _keys(self) -> int:
        return len(self._alphabets[0]) ** self.key_tokens

    @property
    def _sentence(self) -> int:
        return 2 + self.key_tokens + self.value_tokens


def _sentences(mark: int, keys: Ids, values: Ids) -> Ids:
    """``mark key 2 value``, ``(rows, count, tokens)``."""
    ahead = np.full((*keys.shape[:2], 1), mark, np.int32)
    between = np.full_like(ahead, VALUE)
    return np.concatenate([ahead, keys, between, values], axis=2)
