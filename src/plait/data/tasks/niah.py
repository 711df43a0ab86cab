"""Needle in a haystack on token ids: pairs of key and value, hidden in a long row; what belonged to this key?

The token-level twin of the eight needle tasks of Hsieh et al., "RULER: What's the Real Context Size of Your
Long-Context Language Models?" (2404.06654, section 3.1): the same structure on synthetic ids, for models that are
trained from scratch and know no English. A needle is ``1 key value``; at the end, each queried key stands once more as
``2 key value ... value`` with all its values in their order in the row, and their tokens are predicted one by one.
With noise 3..7, keys of one token 8..12 and values of one token 13..18, two keys and one query::

    input    4 7 1 9 14 3 3 6 1 8 17 5 2  9 14
    target   . . . .  . . . . . .  . . . 14  .
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from plait.data.tasks.base import Ids, Task
from plait.data.tasks.sentences import (
    REPEATED,
    Places,
    alphabets,
    at_the_end,
    distinct_numbers,
    distinct_words,
    hide,
    next_token_targets,
    repeated_sentence,
    words,
)
from plait.errors import DataError, OptionError

FILLER, NEEDLE, QUERY = range(3)
_MARKS = 3
_HAYSTACKS = ("noise", "repeat", "needles")

_ONE: Mapping[str, Any] = {"haystack": "noise", "keys": 1, "values": 1, "queries": 1}
_LONG = 8  # tokens that stand for a UUID


@dataclass(frozen=True)
class NeedleInHaystack(Task):
    """Options of the needle tasks; the presets are named after RULER's tasks, without their ``niah_``.

    Args:
        vocab_size: V; the ids 3..V-1 are split in three alphabets of one size: noise, keys, values.
        length: tokens per row.
        haystack: ``noise`` (random ids), ``repeat`` (one sentence again and again) or ``needles`` (only needles,
            of keys that nobody asks for).
        keys: keys in the haystack, beside those of the haystack ``needles``; at least ``queries`` are made.
        values: values per key, each in a needle of its own.
        queries: different keys asked at the end.
        key_tokens: tokens of a key; keys differ within a row.
        value_tokens: tokens of a value.
        depth: where the queried needle stands: 0 at the start, 1 just before the question, None for anywhere.

    Raises:
        DataError: sizes that do not fit together; the message says what would.
        OptionError: an unknown haystack, or a depth outside 0..1.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "single_1": {**_ONE, "haystack": "repeat"},
        "single_2": _ONE,
        "single_3": {**_ONE, "value_tokens": _LONG},
        "multikey_1": {**_ONE, "keys": 4},
        "multikey_2": {**_ONE, "haystack": "needles"},
        "multikey_3": {**_ONE, "haystack": "needles", "key_tokens": _LONG, "value_tokens": _LONG},
        "multivalue": {**_ONE, "values": 4},
        "multiquery": {**_ONE, "queries": 4},
    }

    vocab_size: int = 256
    length: int = 256
    haystack: Literal["noise", "repeat", "needles"] = "noise"
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_tokens: int = 2
    value_tokens: int = 2
    depth: float | None = None

    def __post_init__(self) -> None:
        for name in ("keys", "values", "queries", "key_tokens", "value_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"niah: {name}={getattr(self, name)} must be at least 1.")
        if self.haystack not in _HAYSTACKS:
            raise OptionError(f"niah: haystack={self.haystack!r} must be one of {', '.join(_HAYSTACKS)}.")
        if self.depth is not None:
            if not 0 <= self.depth <= 1:
                raise OptionError(f"niah: depth={self.depth} must be in 0..1.")
            if self.queries * self.values > 1:
                raise DataError(f"niah: depth needs one queried needle; queries={self.queries}, values={self.values}.")
        if self.vocab_size < _MARKS + 3:
            raise DataError(
                f"niah: vocab_size={self.vocab_size} leaves no id for noise, keys and values; "
                f"use vocab_size >= {_MARKS + 3}."
            )
        if self._units < self._needles:
            needed = self._needles * (self._needle + self._unit) + self._question
            raise DataError(
                f"niah: length={self.length} is too short for {self._needles} needles of {self._needle} tokens, a "
                f"haystack of as many units of {self._unit} and a question of {self._question}; use length >= {needed}."
            )
        different = len(self._alphabets[1]) ** self.key_tokens
        if self._all_keys > different:
            raise DataError(
                f"niah: {self._all_keys} keys are needed, but vocab_size={self.vocab_size} has only {different} of "
                f"key_tokens={self.key_tokens}; use a larger vocabulary or more key_tokens."
            )

    @property
    def chance(self) -> float:
        """One of the ids that values are made of."""
        return 1 / len(self._alphabets[2])

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        _, of_keys, of_values = self._alphabets
        keys = distinct_words(rng, rows, self._all_keys, self.key_tokens, of_keys)
        keys, other_keys = keys[:, : self._queryable], keys[:, self._queryable :]
        values = words(rng, rows, self._needles, self.value_tokens, of_values)
        needles = _marked(NEEDLE, np.repeat(keys, self.values, axis=1), values)
        gaps = self._gaps(rng, rows)
        body = hide(self._hay(rng, rows, other_keys), self._unit, list(needles.transpose(1, 0, 2)), gaps)

        order = np.argsort(gaps.reshape(rows, self._queryable, self.values), axis=2)
        values = values.reshape(*order.shape, self.value_tokens)
        values = np.take_along_axis(values, order[..., None], axis=2).reshape(rows, self._queryable, -1)
        asked = slice(self.queries)  # all keys are alike: the first ones are asked
        question = _marked(QUERY, keys[:, asked], values[:, asked]).reshape(rows, -1)
        inputs = at_the_end(np.concatenate([body, question], axis=1), self.length, FILLER)
        from_end = np.arange(self.length, 0, -1) - 1
        query = self._question // self.queries
        answers = (from_end < self._question) & (from_end % query < self.values * self.value_tokens)
        return inputs, next_token_targets(inputs, answers)

    def _gaps(self, rng: np.random.Generator, rows: int) -> Places:
        """Before which unit of the haystack each needle stands, ``(rows, needles)``; the last gap is after them all."""
        if self.depth is None:
            return distinct_numbers(rng, rows, self._units + 1, self._needles)
        queried = round(self.depth * self._units)
        others = distinct_numbers(rng, rows, self._units, self._needles - 1)
        return np.concatenate([np.full((rows, 1), queried), others + (others >= queried)], axis=1)

    def _hay(self, rng: np.random.Generator, rows: int, keys: Ids) -> Ids:
        """The haystack without its needles, ``(rows, units * unit)``; ``keys`` of the haystack ``needles``."""
        of_noise, _, of_values = self._alphabets
        if self.haystack == "needles":
            values = words(rng, rows, self._units, self.value_tokens, of_values)
            return _marked(NEEDLE, keys, values).reshape(rows, -1)
        if self.haystack == "repeat":
            return repeated_sentence(rows, self._units, self._unit, of_noise)
        return words(rng, rows, 1, self._units, of_noise)[:, 0]

    @property
    def _alphabets(self) -> list[range]:
        return alphabets(_MARKS, self.vocab_size, 3)

    @property
    def _queryable(self) -> int:
        return max(self.keys, self.queries)

    @property
    def _all_keys(self) -> int:
        return self._queryable + (self._units if self.haystack == "needles" else 0)

    @property
    def _needles(self) -> int:
        return self._queryable * self.values

    @property
    def _needle(self) -> int:
        return 1 + self.key_tokens + self.value_tokens

    @property
    def _question(self) -> int:
        return self.queries * (1 + self.key_tokens + self.values * self.value_tokens)

    @property
    def _unit(self) -> int:
        return {"noise": 1, "repeat": min(REPEATED, len(self._alphabets[0])), "needles": self._needle}[self.haystack]

    @property
    def _units(self) -> int:
        return (self.length - self._question - self._needles * self._needle) // self._unit


@dataclass(frozen=True)
class MultiKey(NeedleInHaystack):
    """Several keys in the haystack, one of them asked."""

    keys: int = 4


@dataclass(frozen=True)
class MultiQuery(NeedleInHaystack):
    """Several keys in the haystack, each of them asked."""

    queries: int = 4


@dataclass(frozen=True)
class MultiValue(NeedleInHaystack):
    """One key with several values, all of them asked."""

    values: int = 4


def _marked(mark: int, keys: Ids, values: Ids) -> Ids:
    """``mark key value``, ``(rows, count, tokens)``."""
    return np.concatenate([np.full((*keys.shape[:2], 1), mark, np.int32), keys, values], axis=2)
