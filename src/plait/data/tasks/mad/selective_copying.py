"""Selective copying: some tokens stand among blanks; after a mark they are to be given back in their order.

Content has ids 0..V-3, the blank is V - 2, the mark V - 1. Each blank of the first part falls before one of the tokens,
drawn evenly. With V = 6, T = 12, three tokens::

    input    4 2 4 4 0 4 4 3 5 4 4 4
    target   . . . . . . . . . 2 0 3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from plait.data.tasks.base import IGNORED, Ids
from plait.data.tasks.mad.base import MadTask, settings


@dataclass(frozen=True)
class SelectiveCopying(MadTask):
    """Options of selective copying, beside that of :class:`~plait.data.tasks.mad.base.MadTask`.

    Args:
        vocab_size: V.
        length: tokens per row T.
        copied: tokens to copy n; ``2 n + 1 < T``.

    Raises:
        DataError: sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 16, "length": 256, "copied": 16, "examples": 12_800},
        vocab_size=(32, 64, 128),
        length=(512, 1024),
        examples=(6400, 3200, 1600, 800),
        copied=(32, 64, 96),
    )
    vocab_size: int = 16
    length: int = 256
    copied: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._too_small("copied", 1, "a token to copy")
        self._too_small("length", 2 * self.copied + 2, f"copied={self.copied}")
        self._too_small("vocab_size", 3, "content, blank and mark")

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """One token in 16 is to be copied, as in the baseline."""
        return {"length": length, "copied": max(1, length // 16)}

    @property
    def chance(self) -> float:
        """One of the ids of content."""
        return 1 / (self.vocab_size - 2)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        n, T, V = self.copied, self.length, self.vocab_size
        row = np.arange(rows)[:, None]
        content = rng.integers(0, V - 2, (rows, n), dtype=np.int32)
        before = row * n + rng.integers(0, n, (rows, T - 2 * n - 1))  # the token that a blank precedes
        blanks = np.bincount(before.ravel(), minlength=rows * n).reshape(rows, n)
        inputs = np.full((rows, T), V - 2, np.int32)
        inputs[row, blanks.cumsum(axis=1) + np.arange(n)] = content
        inputs[:, T - n - 1] = V - 1
        targets = np.full((rows, T), IGNORED, np.int32)
        targets[:, T - n :] = content
        return inputs, targets
