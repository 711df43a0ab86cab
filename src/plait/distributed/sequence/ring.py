"""Ring attention (2310.01889): keys and values pass around the processes, each merges what its queries see.

Written here since torch's own ``torch.distributed.tensor.experimental.context_parallel`` serves fused CUDA kernels
only (torch 2.13 raises NotImplementedError for CPU tensors) and wants pieces of one length, dealt out for balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plait.distributed.sequence.channel import INSTEAD, Channel
from plait.ops.first_order import refuse_second_order
from plait.ops.softmax import attention, attention_gradients, merge
from plait.ops.visibility import Causal, Full, Visibility

KIND = "ring"


def ring_attention(channel: Channel, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Causal softmax attention over all pieces; a process never holds more than two pieces of keys and values.

    Args:
        channel: the processes.
        q: ``(B, n, H, D)`` of this process.
        k: ``(B, n, N, D)``, N a divisor of H.
        v: ``(B, n, N, V)``.
        lengths: tokens of each piece.

    Returns:
        ``(B, n, H, V)``.
    """
    return _Ring.apply(q, k, v, channel, lengths)


class _Ring(torch.autograd.Function):
    """Keys and values travel side by side.

    In round t a process holds the piece of the process t places before it, and skips it if it comes from behind:
    such a piece is later text.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, channel: Channel, lengths: Sequence[int]) -> Tensor:
        held, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        shape = [*held.shape]
        whole = None
        for turn in range(channel.size):
            owner = (channel.rank - turn) % channel.size
            if owner <= channel.rank:
                held_k, held_v = held.split(widths, -1)
                part = attention(q, held_k, held_v, _seen(owner, channel))
                whole = part if whole is None else merge(whole, part)
            if turn + 1 < channel.size:
                shape[1] = lengths[owner - 1]
                held = channel.rotate(KIND, held, shape)
        assert whole is not None
        ctx.channel, ctx.lengths = channel, lengths
        ctx.save_for_backward(q, k, v, *whole)
        return whole[0]

    @staticmethod
    def backward(ctx: Any, d_o: Tensor) -> tuple[Any, ...]:
        refuse_second_order("Ring attention", INSTEAD)
        q, k, v, o, lse = ctx.saved_tensors
        channel, lengths = ctx.channel, ctx.lengths
        held, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        shape = [*held.shape]
        d_held = torch.zeros(held.shape, dtype=lse.dtype, device=q.device)
        d_q = torch.zeros(q.shape, dtype=lse.dtype, device=q.device)
        for turn in range(channel.size):
            owner = (channel.rank - turn) % channel.size
            if owner <= channel.rank:
                seen = _seen(owner, channel)
                held_k, held_v = held.split(widths, -1)
                part_q, *part_held = attention_gradients(q, held_k, held_v, seen, o, lse, d_o)
                d_q += part_q
                d_held += torch.cat(part_held, -1)
            if turn + 1 < channel.size:
                shape[1] = lengths[owner - 1]
                held = channel.rotate(f"{KIND} gradient", held, shape)
                d_held = channel.rotate(f"{KIND} gradient", d_held, shape)
        shape[1] = lengths[channel.rank]
        d_held = channel.rotate(f"{KIND} gradient", d_held, shape)  # one more step and it is at home
        d_k, d_v = d_held.to(k.dtype).split(widths, -1)
        return d_q.to(q.dtype), d_k, d_v, None, None


def _seen(owner: int, channel: Channel) -> Visibility:
    """What queries see of the piece of a process before theirs, or of their own."""
    return Causal() if owner == channel.rank else Full()
