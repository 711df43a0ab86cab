"""Chunk layout ``(B, H, n, C, D)`` (n chunks of C tokens) and the recurrence of states from chunk to chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.packing import Borders


def choose_chunk(lengths: Sequence[int], limit: int, per_channel: bool) -> int:
    """Chunk size ``<= limit`` that pads little.

    Args:
        lengths: tokens of each document, or of the one sequence.
        limit: the most tokens of a chunk.
        per_channel: whether decay is per key channel, which needs a power of two.
    """
    limit = min(limit, max(lengths))
    if len(lengths) == 1 and not per_channel:
        return -(-lengths[0] // -(-lengths[0] // limit))
    size = 1 << (limit.bit_length() - 1)
    while size > 16 and sum(-(-length // size) * size for length in lengths) > 1.25 * sum(lengths):
        size //= 2
    return size


def to_chunks(x: Tensor, chunk: int, heads: int) -> Tensor:
    """``(B, T, h, ...) -> (B, heads, n, C, ...)``: zeros after the end, each of the ``h`` heads repeated in place."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    x = x.unflatten(1, (-1, chunk)).movedim(3, 1)
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)
    return x.contiguous()


def from_chunks(x: Tensor, length: int) -> Tensor:
    """``(B, H, n, C, V) -> (B, length, H, V)``."""
    return x.movedim(1, 3).flatten(1, 2)[:, :length]


def chain(
    step: Callable[[int, Tensor], Tensor],
    count: int,
    state: Tensor,
    own: Tensor | None = None,
    borders: Borders | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Carry the state through ``count`` chunks.

    Args:
        step: chunk index and entering state ``(B, H, K, V)`` to leaving state.
        count: number of chunks.
        state: state entering the first chunk, unless a document starts there.
        own: states of the documents that start here, in order ``(N, H, K, V)``.
        borders: where documents start and end; None for rows of one document each.

    Returns:
        Entering states ``(B, H, n, K, V)``, the state after the last chunk, and those of the documents that end here.
    """
    waiting = iter(() if own is None else own.split(1))
    entering, finished = [], []
    for c in range(count):
        if borders is not None and borders.starts[c]:
            state = next(waiting)
        entering.append(state)
        state = step(c, state)
        if borders is not None and borders.ends[c]:
            finished.append(state)
    return torch.stack(entering, 2), state, torch.cat(finished) if finished else None
