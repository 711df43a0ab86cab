"""Packed documents laid out so that every chunk belongs to one document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Borders:
    """Where documents start and end among consecutive chunks.

    Args:
        starts: per chunk, whether a document starts with it.
        ends: per chunk, whether a document ends with it.
    """

    starts: tuple[bool, ...]
    ends: tuple[bool, ...]

    def __getitem__(self, part: slice) -> Borders:
        return Borders(self.starts[part], self.ends[part])


@dataclass(frozen=True)
class Packing:
    """Each document padded to whole chunks, one after the other in a single row.

    Args:
        slots: ``(T,)`` int64, where each token of the packed row stands in the layout.
        length: slots of the layout, a multiple of the chunk size.
        borders: document borders among the layout's chunks.
    """

    slots: Tensor
    length: int
    borders: Borders

    @classmethod
    def of(cls, cu_seqlens: Tensor, chunk: int) -> Packing:
        """The layout for documents with these borders ``(N + 1,)``."""
        lengths = cu_seqlens.diff()
        chunks = -(lengths // -chunk)
        first = chunks.cumsum(0) - chunks
        shift = torch.repeat_interleave(first * chunk - cu_seqlens[:-1], lengths)
        starts, ends = torch.zeros(2, int(chunks.sum()), dtype=torch.bool, device=cu_seqlens.device)
        starts[first] = True
        ends[first + chunks - 1] = True
        return cls(
            torch.arange(len(shift), device=shift.device) + shift,
            len(starts) * chunk,
            Borders(tuple(starts.tolist()), tuple(ends.tolist())),
        )

    def lay_out(self, x: Tensor) -> Tensor:
        """``x`` ``(1, T, ...)`` in the layout, zeros at empty slots."""
        return x.new_zeros(1, self.length, *x.shape[2:]).index_copy(1, self.slots, x)

    def take_back(self, x: Tensor) -> Tensor:
        """The tokens of ``x`` ``(1, length, ...)`` in their packed order."""
        return x.index_select(1, self.slots)
