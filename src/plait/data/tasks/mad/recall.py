"""In-context recall, and noisy recall: pairs of key and value; a key that stands again asks for its value.

The target on a key that stood before is its value. Each row draws one value for each key, and several keys may have the
same. With V = 6, T = 12 (keys 0 1 2, values 3 4 5)::

    input    1 5 0 3 1 5 2 3 0 3 1 5
    target   . . . . 5 . . . 3 . 5 .
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from plait.data.tasks.base import IGNORED, Ids
from plait.data.tasks.mad.base import MadTask, first_equal, next_tokens, settings
from plait.errors import DataError

_LENGTHS, _EXAMPLES = (256, 512, 1024), (6400, 3200, 1600, 800)


@dataclass(frozen=True)
class InContextRecall(MadTask):
    """Options of in-context recall, beside that of :class:`~plait.data.tasks.mad.base.MadTask`.

    T/2 pairs follow one another, and several are queries. Keys are drawn evenly, the last one evenly from those that
    stood before. A pair is noise instead with probability ``noise``, except the last one and one other, drawn evenly.

    Args:
        vocab_size: V; without the ``noise_vocab_size`` highest ids, the lower half are keys, the upper half values.
        length: tokens per row T, even. (The published rows leave out the last value, which answers nothing.)
        noise: share of pairs that are two random ids of the noise vocabulary.
        noise_vocab_size: the highest ids, which are noise.
        learn: ``all``: training rows ask for every next token, as published; ``answers``: for the values that are
            measured, as validation and test rows always do.

    Raises:
        DataError: sizes that do not fit together.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 16, "length": 128, "examples": 12_800},
        vocab_size=(32, 64, 128),
        length=_LENGTHS,
        examples=_EXAMPLES,
    )
    vocab_size: int = 16
    length: int = 128
    noise: float = 0.0
    noise_vocab_size: int = 0
    learn: Literal["all", "answers"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.length % 2:
            raise DataError(f"{name}: length={self.length} must be even; use {self.length + 1}.")
        if not 0 <= self.noise < 1:
            raise DataError(f"{name}: noise={self.noise} must be at least 0 and below 1.")
        if self.noise_vocab_size < (1 if self.noise else 0):
            raise DataError(f"{name}: noise_vocab_size={self.noise_vocab_size} has no id for noise={self.noise}.")
        self._too_small("length", 4, "a pair and its query")
        self._too_small("vocab_size", self.noise_vocab_size + 2, "a key and a value")

    @classmethod
    def at_length(cls, length: int) -> dict[str, Any]:
        """The even length next below."""
        return {"length": length - length % 2}

    @property
    def _content(self) -> int:
        """Ids of keys and values."""
        return self.vocab_size - self.noise_vocab_size

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self._content - self._content // 2)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        pairs, n_keys = self.length // 2, self._content // 2
        row = np.arange(rows)[:, None]
        keys = rng.integers(0, n_keys, (rows, pairs))
        noisy = rng.random((rows, pairs)) < self.noise
        noisy[row[:, 0], rng.integers(0, pairs - 1, rows)] = False
        noisy[:, -1] = False
        # noise is a "key" of its own, so that the first of each real key can be told
        first = first_equal(np.where(noisy, n_keys, keys)) == np.arange(pairs)
        first[:, -1] = False
        known = first & ~noisy
        chosen = (known * (1 + rng.random((rows, pairs)))).argmax(axis=1)
        keys[:, -1] = keys[row[:, 0], chosen]

        values = rng.integers(n_keys, self._content, (rows, n_keys))[row, keys]
        inputs = np.stack([keys, values], axis=2).astype(np.int32)
        filler = rng.integers(self._content, max(self.vocab_size, self._content + 1), inputs.shape, dtype=np.int32)
        inputs = np.where(noisy[:, :, None], filler, inputs).reshape(rows, self.length)
        targets = np.full((rows, self.length), IGNORED, np.int32)
        targets[:, ::2] = np.where(first | noisy, IGNORED, values)
        return inputs, targets

    def generate_split(self, rng: np.random.Generator, rows: int, split: str) -> tuple[Ids, Ids]:
        inputs, targets = self.generate(rng, rows)
        return inputs, next_tokens(inputs) if split == "train" and self.learn == "all" else targets


@dataclass(frozen=True)
class NoisyRecall(InContextRecall):
    """In-context recall among noise; see :class:`InContextRecall` for the options."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 32, "noise_vocab_size": 16, "noise": 0.2, "length": 128, "examples": 12_800},
        vocab_size=(48, 80, 144),  # 32, 64 and 128 besides the noise
        length=_LENGTHS,
        examples=_EXAMPLES,
        noise=(0.4, 0.6, 0.8),
    )
    vocab_size: int = 32
    noise: float = 0.2
    noise_vocab_size: int = 16
