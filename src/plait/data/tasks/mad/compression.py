"""Compression: a random row is to be told from the state after its last token, which is a mark.

The target at each position is the token that stands there, so the model must be an auto-encoder
(:class:`plait.models.heads.AutoencoderForCompression`); one that answers at each position would read the answer off.
The mark is V - 1. With V = 4, T = 6::

    input    0 2 2 1 0 3
    target   0 2 2 1 0 .    (the mark in place of the dot with ``score_mark``, as in the published code)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from plait.data.tasks.base import IGNORED, Ids
from plait.data.tasks.mad.base import MadTask, settings


@dataclass(frozen=True)
class Compression(MadTask):
    """Options of compression, beside that of :class:`~plait.data.tasks.mad.base.MadTask`.

    Args:
        vocab_size: V; content has ids 0..V-2, drawn evenly.
        length: tokens per row T, with the mark.
        score_mark: ask for the mark, too, as the published code does; that place is always the same and
            raises every accuracy.

    Raises:
        DataError: sizes that do not fit together.
    """

    autoencoder: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = settings(
        {"vocab_size": 16, "length": 32, "examples": 12_800},
        vocab_size=(32, 64, 128),
        length=(64, 128, 256),
        examples=(6400, 3200, 1600, 800),
    )
    vocab_size: int = 16
    length: int = 32
    score_mark: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._too_small("length", 2, "a token and the mark")
        self._too_small("vocab_size", 2, "content and the mark")

    @property
    def chance(self) -> float:
        """One of the ids of content; the mark, where it is scored, needs no guess."""
        content = 1 / (self.vocab_size - 1)
        return (content * (self.length - 1) + 1) / self.length if self.score_mark else content

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        inputs = rng.integers(0, self.vocab_size - 1, (rows, self.length), dtype=np.int32)
        targets = inputs.copy()
        inputs[:, -1] = self.vocab_size - 1
        targets[:, -1] = self.vocab_size - 1 if self.score_mark else IGNORED
        return inputs, targets
