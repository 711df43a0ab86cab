"""The contract of a task: rows of token ids made from a seed, with a next token to predict at chosen positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from plait.data.corpus import SPLITS, checked_split
from plait.errors import DataError, OptionError
from plait.options import Options

Ids = npt.NDArray[np.int32]
BLOCK = 256
IGNORED = -100
_CACHED_BYTES = 32_000_000


@dataclass(frozen=True)
class Task(Options, ABC):
    """A generator of rows; a subclass is a frozen dataclass of its options, checked in ``__post_init__``.

    Args:
        vocab_size: ids are below this.
        length: tokens per row.

    Attributes:
        autoencoder: all answers are read from the state after the last token, not each from its own position; the
            model is then a :class:`plait.models.heads.AutoencoderForCompression`.
    """

    vocab_size: int
    length: int
    autoencoder: ClassVar[bool] = False

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """The options that make rows of ``length`` tokens, and what should grow with it."""
        return {"length": length}

    @property
    def longest(self) -> int:
        """Tokens in the longest row."""
        return self.length

    @property
    @abstractmethod
    def chance(self) -> float:
        """Expected accuracy of a uniform guess among the answers that are possible at all."""

    @property
    def single_settings(self) -> list[Self]:
        """The task at each of the settings that its rows mix, to be measured one by one; itself where there is one."""
        return [self]

    @property
    def training_rows(self) -> int | None:
        """Different rows of a training split, which then start again; None: they never repeat."""
        return None

    @abstractmethod
    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        """``rows`` rows of one length T: inputs and targets, each ``(rows, T)``; target -100 is ignored."""

    def generate_split(self, rng: np.random.Generator, rows: int, split: str) -> tuple[Ids, Ids]:
        """As :meth:`generate`, for a task whose rows differ between ``train``, ``validation`` and ``test``."""
        return self.generate(rng, rows)

    def _take_vocabulary(self, ids: int) -> None:
        """Turn a ``vocab_size`` of 0 into the ``ids`` that the task needs; :class:`DataError` if it is too small."""
        if self.vocab_size == 0:
            object.__setattr__(self, "vocab_size", ids)
        if self.vocab_size < ids:
            name = type(self).__name__
            raise DataError(f"{name}: vocab_size={self.vocab_size} is too small; use 0 or vocab_size >= {ids}.")


class TaskDataset(Dataset[dict[str, Tensor]]):
    """Rows of a task; row ``i`` depends on ``(task, seed, split, i)`` alone.

    Rows are generated 256 at a time, each block from its own random stream, and the last blocks are kept: read them in
    order. The streams of the three splits are different ones, also for the same seed.

    Args:
        task: what is generated.
        samples: number of rows.
        seed: of the rows.
        split: ``train``, ``validation`` or ``test``.
    """

    def __init__(self, task: Task, samples: int, seed: int, split: str = "train") -> None:
        if samples < 1:
            raise OptionError(f"samples={samples} must be at least 1.")
        self.task = task
        self.samples = samples
        self.seed = seed
        self.split = checked_split(split)
        self._distinct = (task.training_rows if self.split == "train" else None) or samples
        self._blocks: OrderedDict[int, tuple[Ids, Ids]] = OrderedDict()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """``input_ids`` ``(T,)`` and ``targets`` ``(T,)``, int64; target of position t at t, -100 ignored."""
        if not 0 <= i < self.samples:
            raise IndexError(f"row {i} of {self.samples}")
        block, place = divmod(i % self._distinct, BLOCK)
        inputs, targets = self._block(block)
        return {
            "input_ids": torch.from_numpy(inputs[place].astype(np.int64)),
            "targets": torch.from_numpy(targets[place].astype(np.int64)),
        }

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several rows at once, as a data loader asks for them; each block is generated once, in any order of rows."""
        found = {i: self[i] for i in sorted(indices)}
        return [found[i] for i in indices]

    def __getstate__(self) -> dict[str, Any]:  # a data-loader process makes its own blocks
        return {**self.__dict__, "_blocks": OrderedDict()}

    def _block(self, block: int) -> tuple[Ids, Ids]:
        if block not in self._blocks:
            entropy = [self.seed % 2**64, SPLITS.index(self.split), block]
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
            inputs, targets = self.task.generate_split(rng, BLOCK, self.split)
            keep = max(1, _CACHED_BYTES // (inputs.nbytes + targets.nbytes))
            while len(self._blocks) >= keep:
                self._blocks.popitem(last=False)
            self._blocks[block] = inputs, targets
        self._blocks.move_to_end(block)
        return self._blocks[block]


def accuracy(predictions: Tensor, targets: Tensor) -> float:
    """Share of queries answered rightly: mean over the queries of each row, then over rows.

    Args:
        predictions: ids ``(B, T)``, or logits ``(B, T, V)`` whose largest entry is the prediction.
        targets: ``(B, T)``; -100 is ignored.
    """
    return per_example_accuracy(predictions, targets).mean().item()


def per_example_accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of right answers in each row, ``(B,)`` float64; see :func:`accuracy`.

    Raises:
        DataError: a row without a query.
    """
    if predictions.dim() == targets.dim() + 1:
        predictions = predictions.argmax(dim=-1)
    asked = targets != IGNORED
    if not bool(asked.any(dim=1).all()):
        raise DataError("A row has no query: all its targets are -100, so it has no accuracy.")
    right = (predictions == targets) & asked
    return right.sum(dim=1, dtype=torch.float64) / asked.sum(dim=1)


def per_position_accuracy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of rows that are right at each position, ``(T,)`` float64; NaN at a position that no row asks about.

    Args:
        predictions, targets: see :func:`accuracy`.
    """
    if predictions.dim() == targets.dim() + 1:
        predictions = predictions.argmax(dim=-1)
    asked = targets != IGNORED
    right = (predictions == targets) & asked
    return right.sum(dim=0, dtype=torch.float64) / asked.sum(dim=0)


def distinct(rng: np.random.Generator, rows: int, low: int, high: int, count: int) -> Ids:
    """``count`` different integers of ``[low, high)`` for each row: the first steps of a Fisher-Yates shuffle."""
    pool = np.tile(np.arange(low, high, dtype=np.int32), (rows, 1))
    row = np.arange(rows)
    for place in range(count):
        pick = rng.integers(place, high - low, rows)
        chosen = pool[row, pick]
        pool[row, pick] = pool[:, place]
        pool[:, place] = chosen
    return pool[:, :count]
