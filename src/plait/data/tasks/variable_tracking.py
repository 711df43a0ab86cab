"""Variable tracking on token ids: chains of assignments, scattered over a long row; which variables hold this value?

The token-level twin of the task ``vt`` of Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?" (2404.06654, section 3.2). A chain starts with ``1 name 2 value`` (VAR name = value) and goes on with
``1 name 2 1 name`` (VAR name = VAR earlier name); its statements stand in this order, those of several chains mixed. At
the end the value of one chain stands once more, as ``3 value``, and the names of that chain are predicted in their
order, token by token: since the names before are given, each name is one hop away. With noise 4..8, names 9..13 and
values 14..18 of one token each, one chain and one hop::

    input    5 1 11 2 16 8 8 4 1 9 2 1 11 7 3 16 11 9
    target   . . .  . .  . . . . . . . .  . . 11 9  .
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from plait.data.tasks.base import Ids, Task
from plait.data.tasks.sentences import (
    REPEATED,
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

FILLER, VARIABLE, EQUALS, QUERY = range(4)
_MARKS = 4
_HAYSTACKS = ("noise", "repeat")


@dataclass(frozen=True)
class VariableTracking(Task):
    """Options of variable tracking; the preset ``ruler`` has RULER's chain, hops and repeated haystack.

    Args:
        vocab_size: V; the ids 4..V-1 are split in three alphabets of one size: noise, names, values.
        length: tokens per row.
        haystack: ``noise`` (random ids) or ``repeat`` (one sentence again and again).
        chains: chains per row, of different values; one is asked.
        hops: assignments of a name to a name in each chain, which so has ``hops + 1`` names.
        name_tokens: tokens of a name; names differ within a row.
        value_tokens: tokens of a value.

    Raises:
        DataError: sizes that do not fit together; the message says what would.
        OptionError: an unknown haystack.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ruler": {"haystack": "repeat", "chains": 1, "hops": 4}}

    vocab_size: int = 256
    length: int = 256
    haystack: Literal["noise", "repeat"] = "noise"
    chains: int = 1
    hops: int = 4
    name_tokens: int = 2
    value_tokens: int = 2

    def __post_init__(self) -> None:
        for name in ("chains", "hops", "name_tokens", "value_tokens"):
            if getattr(self, name) < 1:
                raise DataError(f"variable_tracking: {name}={getattr(self, name)} must be at least 1.")
        if self.haystack not in _HAYSTACKS:
            raise OptionError(f"variable_tracking: haystack={self.haystack!r} must be one of {', '.join(_HAYSTACKS)}.")
        if self.vocab_size < _MARKS + 3:
            raise DataError(
                f"variable_tracking: vocab_size={self.vocab_size} leaves no id for noise, names and values; "
                f"use vocab_size >= {_MARKS + 3}."
            )
        if self._units < self._count:
            needed = self._statements + self._count * self._unit + self._question
            raise DataError(
                f"variable_tracking: length={self.length} is too short for {self._count} statements in a haystack of "
                f"as many units of {self._unit} and the question; use length >= {needed}, fewer chains or fewer hops."
            )
        _, of_names, of_values = self._alphabets
        for what, wanted, size, tokens in (
            ("name", self._count, len(of_names), self.name_tokens),
            ("value", self.chains, len(of_values), self.value_tokens),
        ):
            if wanted > size**tokens:
                raise DataError(
                    f"variable_tracking: {wanted} {what}s are needed, but vocab_size={self.vocab_size} has only "
                    f"{size**tokens} of {what}_tokens={tokens}; use a larger vocabulary or more {what}_tokens."
                )

    @property
    def chance(self) -> float:
        """One of the ids that names are made of."""
        return 1 / len(self._alphabets[1])

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows: inputs and targets, each ``(rows, T)`` int32; target -100 is ignored."""
        of_noise, of_names, of_values = self._alphabets
        names = distinct_words(rng, rows, self._count, self.name_tokens, of_names)
        values = distinct_words(rng, rows, self.chains, self.value_tokens, of_values)
        gaps = distinct_numbers(rng, rows, self._units + 1, self._count)
        gaps = np.sort(gaps.reshape(rows, self.chains, -1), axis=2).reshape(rows, -1)  # a chain stands in its order

        variable, equals, query = (np.full((rows, 1), mark, np.int32) for mark in (VARIABLE, EQUALS, QUERY))
        statements = []
        for place in range(self._count):
            chain, hop = divmod(place, self.hops + 1)
            right = [variable, names[:, place - 1]] if hop else [values[:, chain]]
            statements.append(np.concatenate([variable, names[:, place], equals, *right], axis=1))
        if self.haystack == "repeat":
            hay = repeated_sentence(rows, self._units, self._unit, of_noise)
        else:
            hay = words(rng, rows, 1, self._units, of_noise)[:, 0]
        body = hide(hay, self._unit, statements, gaps)

        answer = names[:, : self.hops + 1].reshape(rows, -1)  # all chains are alike: the first one is asked
        inputs = at_the_end(np.concatenate([body, query, values[:, 0], answer], axis=1), self.length, FILLER)
        return inputs, next_token_targets(inputs, np.arange(self.length) >= self.length - answer.shape[1])

    @property
    def _alphabets(self) -> list[range]:
        return alphabets(_MARKS, self.vocab_size, 3)

    @property
    def _count(self) -> int:
        """Statements in a row, and so names."""
        return self.chains * (self.hops + 1)

    @property
    def _statements(self) -> int:
        """Tokens of all statements."""
        first, further = 2 + self.name_tokens + self.value_tokens, 3 + 2 * self.name_tokens
        return self.chains * (first + self.hops * further)

    @property
    def _question(self) -> int:
        return 1 + self.value_tokens + (self.hops + 1) * self.name_tokens

    @property
    def _unit(self) -> int:
        return 1 if self.haystack == "noise" else min(REPEATED, len(self._alphabets[0]))

    @property
    def _units(self) -> int:
        return (self.length - self._question - self._statements) // self._unit
