"""Moves of tensors between the processes of a channel, with their gradients: each goes back the way it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.distributed.sequence.channel import INSTEAD, Channel, offsets
from plait.ops.first_order import refuse_second_order


def gathered(channel: Channel, kind: str, x: Tensor, lengths: Sequence[int]) -> Tensor:
    """All pieces of ``x`` ``(B, n, ...)`` side by side, ``(B, T, ...)``; gradients are summed over the processes.

    Unequal pieces travel padded to the longest.
    """
    longest = max(lengths)
    filled = F.pad(x, (*(0, 0) * (x.dim() - 2), 0, longest - x.shape[1]))
    pieces = _Gather.apply(filled, channel, kind)
    return torch.cat([piece[:, :length] for piece, length in zip(pieces, lengths, strict=True)], 1)


def exchanged(
    channel: Channel, kind: str, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]]
) -> tuple[Tensor, ...]:
    """:meth:`Channel.exchange` with gradients."""
    return _Exchange.apply(channel, kind, shapes, *pieces)


def before(channel: Channel, kind: str, x: Tensor, tokens: int, lengths: Sequence[int]) -> Tensor:
    """The ``tokens`` entries before this process's ``x`` ``(B, n, ...)``, or as many as the sequence has there.

    Each process sends those that it holds straight to those that need them: the next one, and further ones where
    pieces are shorter than ``tokens``.
    """
    if tokens == 0:
        return x[:, :0]
    starts = offsets(lengths)

    def overlap(holder: int, reader: int) -> tuple[int, int]:
        """Which tokens of its piece ``holder`` sends to ``reader``."""
        if holder >= reader:
            return 0, 0
        first = max(starts[reader] - tokens, starts[holder])
        return (first - starts[holder], lengths[holder]) if first < starts[holder + 1] else (0, 0)

    pieces, shapes = [], []
    for other in range(channel.size):
        first, last = overlap(channel.rank, other)
        pieces.append(x[:, first:last])
        first, last = overlap(other, channel.rank)
        shapes.append((x.shape[0], last - first, *x.shape[2:]))
    return torch.cat(exchanged(channel, kind, pieces, shapes), 1)


def total(channel: Channel, kind: str, x: Tensor) -> Tensor:
    """``x`` summed over the processes. The gradient is that of this process's own term: each runs backward on its own.

    So a loss that is a sum over the pieces gives, in each process, the gradient of the whole.
    """
    return _Total.apply(x, channel, kind)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel, kind: str) -> tuple[Tensor, ...]:
        ctx.channel, ctx.kind = channel, kind
        return tuple(channel.gather(kind, x))

    @staticmethod
    def backward(ctx: Any, *d_pieces: Tensor) -> tuple[Any, ...]:
        refuse_second_order("A tensor moved between processes", INSTEAD)
        return ctx.channel.reduce_scatter(f"{ctx.kind} gradient", d_pieces), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, channel: Channel, kind: str, shapes: Sequence[Sequence[int]], *pieces: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.channel, ctx.kind = channel, kind
        ctx.shapes = [piece.shape for piece in pieces]
        return tuple(channel.exchange(kind, pieces, shapes))

    @staticmethod
    def backward(ctx: Any, *d_found: Tensor) -> tuple[Any, ...]:
        refuse_second_order("A tensor moved between processes", INSTEAD)
        return None, None, None, *ctx.channel.exchange(f"{ctx.kind} gradient", d_found, ctx.shapes)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, channel: Channel, kind: str) -> Tensor:
        return channel.sum(kind, x)

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[Any, ...]:
        refuse_second_order("A tensor moved between processes", INSTEAD)
        return d_sum, None, None
