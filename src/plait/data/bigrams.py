"""How often each pair of neighbouring tokens occurs, to tell rare bigrams from common ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_CHUNK = 1 << 24
_DENSE = 1 << 24


class BigramCounts:
    """Counts of bigrams in a stretch of tokens.

    Used for AR hits (2402.18668, section 3): tokens that complete a bigram already seen in the context, counted only
    if the bigram is rare in the training text.

    Args:
        tokens: ``(N,)`` ids below ``vocab_size``; a memory map is read in parts.
        vocab_size: V.
    """

    def __init__(self, tokens: npt.NDArray[np.integer], vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._codes = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        for start in range(0, len(tokens) - 1, _CHUNK):
            part = tokens[start : start + _CHUNK + 1].astype(np.int64)
            self._add(part[:-1] * vocab_size + part[1:])

    def __call__(self, previous: Tensor, following: Tensor) -> Tensor:
        """Counts of the bigrams ``(previous, following)``, elementwise, int64 of the same shape and device."""
        wanted = (previous * self.vocab_size + following).cpu().numpy()
        if not len(self._codes):
            return torch.zeros_like(previous)
        place = np.searchsorted(self._codes, wanted).clip(max=len(self._codes) - 1)
        counts = np.where(self._codes[place] == wanted, self._counts[place], 0)
        return torch.from_numpy(counts).to(previous.device)

    def _add(self, codes: npt.NDArray[np.int64]) -> None:
        if self.vocab_size**2 <= _DENSE:
            dense = np.bincount(codes, minlength=1)
            found = np.flatnonzero(dense)
            counts = dense[found]
        else:
            found, counts = np.unique(codes, return_counts=True)
        merged, where = np.unique(np.concatenate([self._codes, found]), return_inverse=True)
        total = np.zeros(len(merged), np.int64)
        np.add.at(total, where, np.concatenate([self._counts, counts]))
        self._codes, self._counts = merged, total
