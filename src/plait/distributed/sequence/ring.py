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

KIND = "ring"
#: Largest number of scores that exist at once.
SCORES = 2**22


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
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    queries = q.transpose(1, 2).reshape(batch, groups, -1, length, width)
    o = _Ring.apply(queries, k.transpose(1, 2), v.transpose(1, 2), channel, lengths)
    return o.reshape(batch, heads, length, -1).transpose(1, 2)


class _Ring(torch.autograd.Function):
    """Queries ``(B, N, G, n, D)``; keys ``(B, N, n, D)`` and values ``(B, N, n, V)`` travel side by side.

    In round t a process holds the piece of the process t places before it, and skips it if it comes from behind:
    such a piece is later text.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, channel: Channel, lengths: Sequence[int]) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        held, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        shape = [*held.shape]
        output = torch.zeros(*q.shape[:-1], widths[1], dtype=dtype, device=q.device)
        lse = torch.full(q.shape[:-1], -torch.inf, dtype=dtype, device=q.device)
        for turn in range(channel.size):
            owner = (channel.rank - turn) % channel.size
            if owner <= channel.rank:
                keys, values = held.to(dtype).split(widths, -1)
                o, new = _block(q.to(dtype), keys, values, causal=owner == channel.rank)
                output, lse = merged(output, lse, o, new)
            if turn + 1 < channel.size:
                shape[-2] = lengths[owner - 1]
                held = channel.rotate(KIND, held, shape)
        ctx.channel, ctx.lengths = channel, lengths
        output = output.to(q.dtype)
        ctx.save_for_backward(q, k, v, output, lse)
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Any, ...]:
        refuse_second_order("Ring attention", INSTEAD)
        q, k, v, output, lse = ctx.saved_tensors
        channel, lengths = ctx.channel, ctx.lengths
        dtype = lse.dtype
        held, widths = torch.cat([k, v], -1), [k.shape[-1], v.shape[-1]]
        shape = [*held.shape]
        d_held = torch.zeros(held.shape, dtype=dtype, device=q.device)
        d_q = torch.zeros(q.shape, dtype=dtype, device=q.device)
        d_output = d_output.to(dtype)
        inner = (d_output * output).sum(-1)
        for turn in range(channel.size):
            owner = (channel.rank - turn) % channel.size
            if owner <= channel.rank:
                keys, values = held.to(dtype).split(widths, -1)
                found = _block_gradients(q.to(dtype), keys, values, lse, d_output, inner, causal=owner == channel.rank)
                d_q += found[0]
                d_held += torch.cat(found[1:], -1)
            if turn + 1 < channel.size:
                shape[-2] = lengths[owner - 1]
                held = channel.rotate(f"{KIND} gradient", held, shape)
                d_held = channel.rotate(f"{KIND} gradient", d_held, shape)
        shape[-2] = lengths[channel.rank]
        d_held = channel.rotate(f"{KIND} gradient", d_held, shape)  # one more step and it is at home
        d_k, d_v = d_held.to(k.dtype).split(widths, -1)
        return d_q.to(q.dtype), d_k, d_v, None, None


def merged(o: Tensor, lse: Tensor, o_new: Tensor, lse_new: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from the attention over each, and its log-sum-exp; either set may be empty.

    Args:
        o, o_new: ``(..., D)``.
        lse, lse_new: log of the sum of exponentiated scores ``(...)``, ``-inf`` for no keys.
    """
    both = torch.logaddexp(lse, lse_new)
    known = both.masked_fill(both == -torch.inf, 0)  # no keys at all: both weights are 0
    return o * (lse - known).exp()[..., None] + o_new * (lse_new - known).exp()[..., None], both


def _tiles(q: Tensor, keys: int) -> list[tuple[int, int]]:
    """Queries ``[first, last)`` whose scores with so many keys may exist at once."""
    size = max(1, SCORES // (q[..., 0].numel() // q.shape[-2] * keys))
    return [(first, min(first + size, q.shape[-2])) for first in range(0, q.shape[-2], size)]


def _scores(q: Tensor, k: Tensor, first: int, last: int, causal: bool) -> Tensor:
    """Scaled scores of queries ``[first, last)`` with the keys that any of them sees, ``(B, N, G, t, s)``."""
    if causal:
        k = k[..., :last, :]
    scores = (q[..., first:last, :] * q.shape[-1] ** -0.5) @ k[:, :, None].mT
    if causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(first + 1)
        scores = scores.masked_fill_(future, -torch.inf)
    return scores


def _block(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of queries over one piece, and the log-sum-exp of their scores."""
    outputs, sums = [], []
    for first, last in _tiles(q, k.shape[-2]):
        scores = _scores(q, k, first, last, causal)
        lse = scores.logsumexp(-1)
        weights = scores.sub_(lse[..., None]).exp_()
        outputs.append(weights @ v[:, :, None, : weights.shape[-1]])
        sums.append(lse)
    return torch.cat(outputs, -2), torch.cat(sums, -1)


def _block_gradients(
    q: Tensor, k: Tensor, v: Tensor, lse: Tensor, d_output: Tensor, inner: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from one piece.

    With the weights ``P = exp(scores - lse)`` over all pieces and ``dP = dO V^T``: ``dV = P^T dO``,
    ``dS = P (dP - O . dO)``, ``dQ = dS K``, ``dK = dS^T Q``.
    """
    scale = q.shape[-1] ** -0.5
    d_q, d_k, d_v = [], torch.zeros_like(k), torch.zeros_like(v)
    for first, last in _tiles(q, k.shape[-2]):
        tile = slice(first, last)
        weights = _scores(q, k, first, last, causal).sub_(lse[..., tile, None]).exp_()
        seen = slice(weights.shape[-1])
        d_o = d_output[..., tile, :]
        d_v[..., seen, :] += (weights.mT @ d_o).sum(2)
        d_scores = weights.mul_((d_o @ v[:, :, None, seen].mT).sub_(inner[..., tile, None])).mul_(scale)
        d_q.append(d_scores @ k[:, :, None, seen])
        d_k[..., seen, :] += (d_scores.mT @ q[..., tile, :]).sum(2)
    return torch.cat(d_q, -2), d_k, d_v
