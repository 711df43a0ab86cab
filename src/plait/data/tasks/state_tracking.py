"""State tracking: parity, a walk on a cycle and modular arithmetic, with the running answer at every position.

Delétang et al., "Neural Networks and the Chomsky Hierarchy" (2207.02098), and its code. Published models answer once,
at the end of a string of 1 to 40 tokens, and are then tested on strings of up to 500. Here a row of T tokens asks for
the answer of each of its prefixes, which trains on all lengths up to T at once; measure longer rows with ``length`` and
:func:`plait.data.tasks.base.per_position_accuracy`::

    parity             input 1 0 1 1      target 1 1 0 1
    cycle_navigation   input 2 2 1 0 0    target 1 2 2 1 0      0 left, 1 stay, 2 right, from position 0
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, Task
from plait.errors import DataError


@dataclass(frozen=True)
class StateTracking(Task):
    """A machine with few states reads a row; the answer is its state. No id is a filler.

    Args:
        vocab_size: 0 for as many ids as the task needs.
        length: tokens per row T.
        targets: ``every``: the state after each token; ``last``: after the last one only.

    Raises:
        DataError: sizes that do not fit; the message says what would.
    """

    vocab_size: int = 0
    length: int = 40
    targets: Literal["every", "last"] = "every"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError(f"{type(self).__name__}: length={self.length} must be at least 1.")
        self._take_vocabulary(max(self.symbols, self.states))

    @property
    @abstractmethod
    def symbols(self) -> int:
        """Input ids are below this."""

    @property
    @abstractmethod
    def states(self) -> int:
        """Answers are below this."""

    @property
    def chance(self) -> float:
        """One of the states."""
        return 1 / self.states

    def _asked(self, answers: npt.NDArray[Any]) -> Ids:
        """Targets from the answer at every position."""
        targets = answers.astype(np.int32)
        if self.targets == "last":
            targets[:, :-1] = IGNORED
        return targets


@dataclass(frozen=True)
class Parity(StateTracking):
    """Is the number of ones so far odd? Bits are drawn evenly; see :class:`StateTracking` for the options."""

    @property
    def symbols(self) -> int:
        return 2

    @property
    def states(self) -> int:
        return 2

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        inputs = rng.integers(0, 2, (rows, self.length), dtype=np.int32)
        return inputs, self._asked(inputs.cumsum(axis=1) % 2)


@dataclass(frozen=True)
class CycleNavigation(StateTracking):
    """The position on a cycle after steps to the left (id 0), none (1) or to the right (2), drawn evenly.

    Args:
        cycle: positions; published with 5.
    """

    cycle: int = 5

    def __post_init__(self) -> None:
        if self.cycle < 2:
            raise DataError(f"CycleNavigation: cycle={self.cycle} must be at least 2.")
        super().__post_init__()

    @property
    def symbols(self) -> int:
        return 3

    @property
    def states(self) -> int:
        return self.cycle

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        inputs = rng.integers(0, 3, (rows, self.length), dtype=np.int32)
        return inputs, self._asked((inputs - 1).cumsum(axis=1) % self.cycle)


@dataclass(frozen=True)
class ModularArithmetic(StateTracking):
    """The value of an expression of +, - and * modulo m, without or with brackets.

    Number n has id n; + - * ( ) are m, m + 1, m + 2, m + 3, m + 4. Numbers and operators are drawn evenly.

    Without brackets numbers and operators alternate, products come first, and the target on each number is the value of
    what stands so far. With m = 5::

        input    1 + 2 * 3 - 4
        target   1 . 3 . 2 . 3

    With brackets a string of n tokens is, as published, ``d``, ``-d``, ``(d)`` or ``(-d)`` for n = 1 to 4, and else
    ``(left operator right)``, where the left part has 1 to n - 4 tokens, drawn evenly. The target on each closing
    bracket is the value of what it closes, and that on the last position the value of all::

        input    ( 2 * ( 1 - 4 ) )
        target   . . . . . . . 2 4

    Args:
        length: tokens per row T; odd without brackets.
        modulus: m; published with 5.
        brackets: whether there are brackets.
    """

    length: int = 39
    modulus: int = 5
    brackets: bool = False

    def __post_init__(self) -> None:
        if self.modulus < 2:
            raise DataError(f"ModularArithmetic: modulus={self.modulus} must be at least 2.")
        if not self.brackets and self.length % 2 == 0:
            raise DataError(f"ModularArithmetic: length={self.length} must be odd; use {self.length + 1}.")
        super().__post_init__()

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """The odd length next below, which suits both kinds."""
        return {"length": length - 1 + length % 2}

    @property
    def symbols(self) -> int:
        return self.modulus + (5 if self.brackets else 3)

    @property
    def states(self) -> int:
        return self.modulus

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        inputs, answers = (_bracketed if self.brackets else _plain)(rng, rows, self.length, self.modulus)
        return inputs, self._asked(answers)


def _plain(rng: np.random.Generator, rows: int, length: int, m: int) -> tuple[Ids, Ids]:
    numbers = rng.integers(0, m, (rows, length // 2 + 1), dtype=np.int32)
    operators = rng.integers(0, 3, (rows, length // 2), dtype=np.int32)
    inputs = np.empty((rows, length), np.int32)
    inputs[:, ::2] = numbers
    inputs[:, 1::2] = m + operators
    answers = np.full((rows, length), IGNORED, np.int32)
    done, product = np.zeros(rows, np.int32), numbers[:, 0]  # the terms that are finished, the one that may go on
    answers[:, 0] = product
    for place in range(1, numbers.shape[1]):
        operator, number = operators[:, place - 1], numbers[:, place]
        times = operator == 2
        done = np.where(times, done, done + product) % m
        product = np.where(times, product * number, np.where(operator == 1, -number, number)) % m
        answers[:, 2 * place] = (done + product) % m
    return inputs, answers


class _Level(NamedTuple):
    """Bracketed expressions of one depth: their row, first and last position, length of the left part, operator."""

    row: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    left: npt.NDArray[np.int64]
    operator: npt.NDArray[np.int64]


def _bracketed(rng: np.random.Generator, rows: int, length: int, m: int) -> tuple[Ids, Ids]:
    minus, opening, closing = m + 1, m + 3, m + 4
    inputs = np.empty((rows, length), np.int32)
    values = np.full((rows, length), IGNORED, np.int32)  # of the expression whose last token stands there
    row, start = np.arange(rows), np.zeros(rows, np.int64)
    size = np.full(rows, length)
    levels = []
    while len(row):
        short = size < 5
        r, first, n = row[short], start[short], size[short]
        last = first + n - 1
        numbers = rng.integers(0, m, len(r), dtype=np.int32)
        enclosed, negative = n > 2, n % 2 == 0
        inputs[r[enclosed], first[enclosed]] = opening
        inputs[r[enclosed], last[enclosed]] = closing
        inputs[r[negative], (first + enclosed)[negative]] = minus
        inputs[r, last - enclosed] = numbers
        values[r, last] = np.where(negative, -numbers, numbers) % m

        row, start, size = row[~short], start[~short], size[~short]
        level = _Level(row, start, start + size - 1, rng.integers(1, size - 3), rng.integers(0, 3, len(row)))
        inputs[row, start] = opening
        inputs[row, level.end] = closing
        inputs[row, start + 1 + level.left] = m + level.operator
        levels.append(level)
        row = np.concatenate([row, row])
        start = np.concatenate([start + 1, start + 2 + level.left])
        size = np.concatenate([level.left, size - 3 - level.left])
    for level in reversed(levels):
        left, right = values[level.row, level.start + level.left], values[level.row, level.end - 1]
        results = np.choose(level.operator, [left + right, left - right, left * right])
        values[level.row, level.end] = results % m
    answers = np.where(inputs == closing, values, IGNORED)
    answers[:, -1] = values[:, -1]
    return inputs, answers
