"""Memorization: values of keys that no row shows; the same in all rows, they must be learnt by heart.

Each key, drawn evenly, is followed by a mark; the target on the mark is the key's value. Below the mark V - 1, the
lower half of the ids are keys, the upper half values. With V = 7, T = 8 and the mapping 0 -> 4, 1 -> 5, 2 -> 3::

    input    2 6 0 6 0 6 1 6
    target   . 3 . 4 . 4 . 5
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids
from plait.data.tasks.mad.base import MadTask, settings
from plait.errors import DataError


@dataclass(frozen=True)
class Memorization(MadTask):
    """Options of memorization, beside that of :class:`~plait.data.tasks.mad.base.MadTask`.

    Args:
        vocab_size: V.
        length: tokens per row T, even.
        mapping_seed: decides the value of each key; no two keys have the same.

    Raises:
        DataError: sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 256, "length": 32, "examples": 256}, vocab_size=(512, 1024, 2048, 4096, 8192)
    )
    vocab_size: int = 256
    length: int = 32
    mapping_seed: int = 12345

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 2:
            raise DataError(f"Memorization: length={self.length} must be even; use {self.length + 1}.")
        self._too_small("length", 2, "a key and its mark")
        self._too_small("vocab_size", 3, "a key, a value and the mark")
        self._too_small("mapping_seed", 0, "a seed")

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """The even length next below."""
        return {"length": length - length % 2}

    @property
    def mapping(self) -> npt.NDArray[np.int32]:
        """The value of each key."""
        keys = (self.vocab_size - 1) // 2
        values = np.arange(keys, self.vocab_size - 1, dtype=np.int32)
        return np.random.default_rng(self.mapping_seed).permutation(values)[:keys]

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self.vocab_size - 1 - (self.vocab_size - 1) // 2)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        mapping = self.mapping
        keys = rng.integers(0, len(mapping), (rows, self.length // 2), dtype=np.int32)
        inputs = np.full((rows, self.length), self.vocab_size - 1, np.int32)
        inputs[:, ::2] = keys
        targets = np.full((rows, self.length), IGNORED, np.int32)
        targets[:, 1::2] = mapping[keys]
        return inputs, targets
