"""ListOps: the value of a nested list of operations on digits; one answer for a long, hierarchical row.

Nangia and Bowman (1804.06028), as the first task of Tay et al., "Long Range Arena" (2011.04006), and its generator. The
target, on the last position, is the value, 0 to 9. Rows are filled in front with 0. Round brackets are left out::

    [MAX 2 9 [MIN 4 7 ] 0 ]     has the value 9; in ids   2 8 15 1 10 13 5 6 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, Task
from plait.errors import DataError

#: Tokens by id.
TOKENS = ("", "[MIN", "[MAX", "[MED", "[SM", "]", *"0123456789")
_END, _ZERO = TOKENS.index("]"), TOKENS.index("0")
_OPERATORS = 4
_OPERATION_PROBABILITY = 0.25
_MOST_ROUNDS = 64

_Int = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ListOps(Task):
    """Options of ListOps.

    A tree is drawn from its root: above the greatest depth a node is an operation with probability 1/4, else a digit.
    Operations are ``[MIN``, ``[MAX``, ``[MED`` (median, rounded down) and ``[SM`` (sum modulo 10), drawn evenly, with 2
    to ``arguments`` arguments, drawn evenly. Trees of other lengths than wanted are thrown away.

    Args:
        vocab_size: 16 ids, see :data:`TOKENS`; 0 for so many. The target of value n is the id of the digit n.
        length: tokens per row T; a tree has fewer.
        min_length: a tree has more tokens.
        depth: of the tree; its root has depth 1.
        arguments: most arguments of an operation.

    Raises:
        DataError: sizes that do not fit together; in :meth:`generate`, too few trees have a length that is wanted.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lra": {"length": 2000, "min_length": 500, "depth": 10, "arguments": 10},
        "small": {"length": 128, "min_length": 32, "depth": 4, "arguments": 4},
    }
    vocab_size: int = 0
    length: int = 2000
    min_length: int = 500
    depth: int = 10
    arguments: int = 10

    @classmethod
    def small(cls, dims: Any = None) -> Self:
        return cls(**cls.at_length(128))

    def __post_init__(self) -> None:
        self._take_vocabulary(len(TOKENS))
        for option, least in (("depth", 2), ("arguments", 2), ("min_length", 1)):
            if getattr(self, option) < least:
                raise DataError(f"ListOps: {option}={getattr(self, option)} must be at least {least}.")
        shortest = max(self.min_length + 1, 4)
        if self.length <= shortest:
            raise DataError(
                f"ListOps: no tree has more than min_length={self.min_length} and fewer than length={self.length} "
                f"tokens; use length >= {shortest + 1} or a smaller min_length."
            )
        if self.longest_tree <= self.min_length:
            raise DataError(
                f"ListOps: a tree of depth={self.depth} and arguments={self.arguments} has at most "
                f"{self.longest_tree} tokens; use min_length < {self.longest_tree}."
            )

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """Trees of a quarter of the length and more, as in the arena."""
        return {"length": length, "min_length": max(1, length // 4)}

    @property
    def longest_tree(self) -> int:
        """Tokens of the largest tree that the depth and the arguments allow."""
        leaves: int = self.arguments ** (self.depth - 1)
        return leaves + 2 * ((leaves - 1) // (self.arguments - 1))

    @property
    def chance(self) -> float:
        """One of ten values."""
        return 0.1

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        inputs = np.zeros((rows, self.length), np.int32)
        targets = np.full((rows, self.length), IGNORED, np.int32)
        done, trees = 0, 4 * rows
        for _ in range(_MOST_ROUNDS):
            forest, whole = _grow(rng, trees, self.depth, self.arguments, self.length)
            sizes = _sizes(forest)[0]
            fitting = (whole & (sizes > self.min_length) & (sizes < self.length)).nonzero()[0][: rows - done]
            if len(fitting):
                forest = _select(forest, fitting)
                place = slice(done, done + len(fitting))
                _write(forest, inputs[place])
                targets[place, -1] = _ZERO + _values(forest)
                done += len(fitting)
            if done == rows:
                return inputs, targets
            trees = min(2 * trees, 16_384)
        raise DataError(
            f"ListOps: hardly a tree of depth={self.depth} and arguments={self.arguments} has more than "
            f"min_length={self.min_length} and fewer than length={self.length} tokens; lower min_length, or allow more "
            "depth or arguments."
        )


@dataclass(frozen=True)
class _Level:
    """The nodes of one depth of many trees, from left to right; the children of a level are the level below, in order.

    Args:
        tree: which tree a node belongs to, ``(N,)``.
        children: how many it has; 0 for a digit.
        kind: the digit, or the operator's number.
    """

    tree: _Int
    children: _Int
    kind: _Int

    @property
    def operations(self) -> _Int:
        """Indices of the operations, ``(M,)``."""
        return self.children.nonzero()[0]

    @property
    def first_child(self) -> _Int:
        """Index in the level below of each operation's first child, ``(M,)``."""
        children = self.children[self.operations]
        return children.cumsum() - children


def _grow(
    rng: np.random.Generator, trees: int, depth: int, arguments: int, length: int
) -> tuple[list[_Level], npt.NDArray[np.bool_]]:
    """Trees by levels, and which are whole: those that reach ``length`` tokens on the way are cut short.

    Roots are operations: a lone digit is always too short.
    """
    tree = np.arange(trees)
    tokens = np.zeros(trees)
    whole = np.ones(trees, np.bool_)
    levels = []
    for level in range(1, depth + 1):
        operation = rng.random(len(tree)) < _OPERATION_PROBABILITY
        operation[:] = operation if 1 < level < depth else level == 1
        children = np.where(operation, rng.integers(2, arguments + 1, len(tree)), 0)
        kind = np.where(operation, rng.integers(0, _OPERATORS, len(tree)), rng.integers(0, 10, len(tree)))
        tokens += np.bincount(tree, weights=1 + operation, minlength=trees)
        whole &= tokens + np.bincount(tree, weights=children, minlength=trees) < length
        children[~whole[tree]] = 0
        levels.append(_Level(tree, children, kind))
        tree = tree.repeat(children)
        if not len(tree):
            break
    return levels, whole


def _select(forest: list[_Level], chosen: _Int) -> list[_Level]:
    """The chosen trees alone, numbered from 0."""
    number = np.full(forest[0].tree.size, -1)
    number[chosen] = np.arange(len(chosen))
    kept = []
    for level in forest:
        tree = number[level.tree]
        mine = tree >= 0
        kept.append(_Level(tree[mine], level.children[mine], level.kind[mine]))
    return [level for level in kept if len(level.tree)]


def _sizes(forest: list[_Level]) -> list[_Int]:
    """Tokens of the subtree under every node, by level."""
    sizes = [np.ones(len(forest[-1].tree), np.int64)]
    for level in reversed(forest[:-1]):
        size = np.ones(len(level.tree), np.int64)
        size[level.operations] = 2 + np.add.reduceat(sizes[0], level.first_child)
        sizes.insert(0, size)
    return sizes


def _values(forest: list[_Level]) -> _Int:
    """Value of every tree."""
    below = forest[-1].kind
    for level in reversed(forest[:-1]):
        first, children = level.first_child, level.children[level.operations]
        ordered = below[np.lexsort((below, np.arange(len(first)).repeat(children)))]
        results = np.stack(
            [
                ordered[first],
                ordered[first + children - 1],
                (ordered[first + (children - 1) // 2] + ordered[first + children // 2]) // 2,
                np.add.reduceat(below, first) % 10,
            ]
        )
        value = level.kind.copy()
        value[level.operations] = np.take_along_axis(results, level.kind[level.operations][None], axis=0)[0]
        below = value
    return below


def _write(forest: list[_Level], rows: Ids) -> None:
    """Write tree i to the end of row i."""
    sizes = _sizes(forest)
    start = rows.shape[1] - sizes[0]
    for depth, level in enumerate(forest):
        operation = level.children > 0
        rows[level.tree, start] = np.where(operation, 1 + level.kind, _ZERO + level.kind)
        rows[level.tree[operation], (start + sizes[depth] - 1)[operation]] = _END
        if depth + 1 < len(forest):
            size = sizes[depth + 1]
            before = size.cumsum() - size  # tokens of all nodes to the left, of which those of other parents go
            parent = level.operations.repeat(level.children[level.operations])
            start = start[parent] + 1 + before - before[level.first_child].repeat(level.children[level.operations])
