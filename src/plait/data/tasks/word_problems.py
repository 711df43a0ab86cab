"""Word problems of finite groups: the running product of a sequence of group elements.

Merrill, Petty and Sabharwal, "The Illusion of State in State-Space Models" (2404.08819), and its code. Input t is a
group element, drawn evenly; the target on it is the product ``x_1 x_2 ... x_t``: ``acc := acc x_t``, starting from the
identity. A5 and S5 are not solvable, and their word problems are complete for NC1, beyond what models of fixed depth
with diagonal or input-independent transitions are thought to compute. S3, A4xZ5 and Z60 are solvable; Z60 commutes.

Elements are permutations, or pairs of an element of each factor. ``a b`` is the composition with b applied first,
``(a b)(i) = a(b(i))``. Ids are ranks in lexicographic order, so that the identity has id 0. In S3 the ids 0 to 5 are
012, 021, 102, 120, 201, 210::

    input    1 2 2 4
    target   1 4 1 2
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import Literal

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import Ids
from plait.data.tasks.state_tracking import StateTracking

Table = npt.NDArray[np.int32]


@dataclass(frozen=True)
class WordProblem(StateTracking):
    """Options of a word problem, beside those of :class:`~plait.data.tasks.state_tracking.StateTracking`.

    Args:
        group: ``S3`` (6 elements), ``A5`` (60), ``S5`` (120), ``Z60`` (60) or ``A4xZ5`` (60).
    """

    group: Literal["S3", "A5", "S5", "Z60", "A4xZ5"] = "S5"

    @property
    def symbols(self) -> int:
        return len(multiplication_table(self.group))

    @property
    def states(self) -> int:
        return len(multiplication_table(self.group))

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        table = multiplication_table(self.group)
        inputs = rng.integers(0, len(table), (rows, self.length), dtype=np.int32)
        answers = np.empty_like(inputs)
        product = np.zeros(rows, np.int32)
        for t in range(self.length):
            product = answers[:, t] = table[product, inputs[:, t]]
        return inputs, self._asked(answers)


@cache
def multiplication_table(group: str) -> Table:
    """``table[a, b]`` is the id of ``a b``, ``(order, order)``; the id of the identity is 0.

    Args:
        group: ``S`` or ``A`` and a number of points, ``Z`` and an order, or a direct product of these joined by ``x``.
    """
    first, *others = group.split("x")
    table = _cyclic(int(first[1:])) if first[0] == "Z" else _permutations(int(first[1:]), even=first[0] == "A")
    for other in others:
        factor = multiplication_table(other)
        n = len(table) * len(factor)
        pairs = table[:, None, :, None] * len(factor) + factor[None, :, None, :]  # id of (a, b) is a len(factor) + b
        table = pairs.reshape(n, n)
    table.setflags(write=False)
    return table


def _cyclic(order: int) -> Table:
    element = np.arange(order, dtype=np.int32)
    return (element[:, None] + element) % order


def _permutations(points: int, even: bool) -> Table:
    elements = [p for p in permutations(range(points)) if not (even and _inversions(p) % 2)]
    ids = {p: index for index, p in enumerate(elements)}
    return np.array([[ids[tuple(a[i] for i in b)] for b in elements] for a in elements], np.int32)


def _inversions(permutation: tuple[int, ...]) -> int:
    return sum(permutation[i] > later for i in range(len(permutation)) for later in permutation[i + 1 :])
