"""Scores between the tokens of a chunk under decay, safe at any strength.

Inside a chunk the score of token ``i`` for token ``j <= i`` is ``q_i . diag(exp(G_i - G_j)) k_j`` with ``G`` the
cumulative log decay. ``exp(-G_j)`` alone overflows, so only factors ``<= 1`` are ever formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from plait.ops.first_order import first_order

# exp(-1000) is 0 in fp32 and fp64, so nothing changes, and differences of cumulative sums stay exact and finite.
_FORGOTTEN = -1000.0


class HeadDecay(NamedTuple):
    """Decay factors of every chunk, one per head; constants, the gradient is taken in :func:`head_scores`.

    Args:
        log_decay: ``(B or 1, H or 1, n, C)``, ``<= 0``.
        between: ``exp(G_i - G_j)`` for ``i >= j``, else 0, ``(..., C, C)``.
        entry: ``exp(G_i)``, from before the chunk to token ``i``, ``(..., C, 1)``.
        exit: ``exp(G_C - G_j)``, from token ``j`` to the chunk's end, ``(..., C, 1)``.
    """

    log_decay: Tensor
    between: Tensor
    entry: Tensor
    exit: Tensor

    @classmethod
    def of(cls, log_decay: Tensor) -> HeadDecay:
        """Differences are taken in fp64: after one strong decay an fp32 cumulative sum has lost the weak ones."""
        with torch.no_grad():
            dtype, length = log_decay.dtype, log_decay.shape[-1]
            G = log_decay.clamp(min=_FORGOTTEN).double().cumsum(-1)
            future = torch.ones(length, length, dtype=torch.bool, device=G.device).triu(1)
            between = (G[..., :, None] - G[..., None, :]).to(dtype).masked_fill_(future, -torch.inf).exp_()
            entry = G.exp().to(dtype)
            exit = (G[..., -1:] - G).exp().to(dtype)
        return cls(log_decay, between, entry[..., None], exit[..., None])


def head_scores(q: Tensor, k: Tensor, decay: HeadDecay) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores under a decay per head; arguments and results as :func:`channel_scores`, the total ``(..., 1)``."""
    return _HeadScores.apply(q, k, *decay)


class _HeadScores(torch.autograd.Function):
    """``G`` enters only as ``e^{G_i} q_i`` and ``e^{-G_j} k_j``, so ``dG_i = q_i . dq_i - k_i . dk_i``."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, log_decay: Tensor, between: Tensor, entry: Tensor, exit: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, log_decay, between, entry, exit)
        return (q @ k.mT).mul_(between), q * entry, k * exit, entry[..., -1, :].clone()

    @staticmethod
    @first_order("The torch backend under decay")
    def backward(
        ctx: Any, d_scores: Tensor | None, d_entered: Tensor | None, d_leaving: Tensor | None, d_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, log_decay, between, entry, exit = ctx.saved_tensors
        d_q, d_k, own = torch.zeros_like(q), torch.zeros_like(k), None
        if d_scores is not None:
            weights = d_scores * between
            own = weights.diagonal(dim1=-2, dim2=-1)[..., None].clone()
            weights.diagonal(dim1=-2, dim2=-1).zero_()  # a token's score for itself has no decay in it
            d_q, d_k = weights @ k, weights.mT @ q
        if d_entered is not None:
            d_q.addcmul_(d_entered, entry)
        if d_leaving is not None:
            d_leaving = d_leaving * exit
            d_k += d_leaving
        d_log_decay = None
        if ctx.needs_input_grad[2]:
            d_G = ((q * d_q).sum(-1) - (k * d_k).sum(-1)).double()
            if d_leaving is not None:
                d_G[..., -1] += (k * d_leaving).sum((-1, -2))
            d_G = d_G.sum_to_size(log_decay.shape)
            if d_total is not None:
                d_G[..., -1] += (d_total * entry[..., -1, :]).sum(-1)
            d_log_decay = d_G.flip(-1).cumsum(-1).flip(-1).to(q.dtype)
        if own is not None:
            d_q.addcmul_(own, k)
            d_k.addcmul_(own, q)
        return d_q, d_k, d_log_decay, None, None, None


def channel_scores(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores under a decay per key channel, by halving (form 2 of GLA's secondary chunking, 2312.06635, section 4.3).

    A block of tokens is two halves; a later token sees an earlier one through their border, with both factors
    (border to query, key to border) a product of step decays ``<= 1``. Pairs of tokens, then of pairs, and so on:
    every factor is a product of factors one level below.

    Args:
        q: queries ``(..., C, K)``, ``C`` a power of two.
        k: keys ``(..., C, K)``.
        log_decay: ``(..., C, K)``, ``<= 0``.

    Returns:
        Scores ``(..., C, C)``, zero above the diagonal; ``q`` decayed from before the chunk, ``exp(G_i) q_i``; ``k``
        decayed to its end, ``exp(G_C - G_j) k_j``; the chunk's total decay ``exp(G_C)`` ``(..., K)``.
    """
    lead, (length, width) = q.shape[:-2], q.shape[-2:]
    shape = (-1, length, width)
    scores, entered, leaving, total = _ChannelScores.apply(
        q.reshape(shape), k.reshape(shape), log_decay.expand(q.shape).reshape(shape)
    )
    return (
        scores.view(*lead, length, length),
        entered.view(*lead, length, width),
        leaving.view(*lead, length, width),
        total.view(*lead, width),
    )


def _earlier(x: Tensor, half: int) -> Tensor:
    """View ``(M, m, half, K)`` of the first half of every block of ``2 half`` rows of ``x`` ``(M, C, K)``."""
    return x.view(x.shape[0], -1, 2, half, x.shape[2])[:, :, 0]


def _later(x: Tensor, half: int) -> Tensor:
    """View ``(M, m, half, K)`` of the second half of every block."""
    return x.view(x.shape[0], -1, 2, half, x.shape[2])[:, :, 1]


def _lower_left(scores: Tensor, half: int) -> Tensor:
    """View ``(M, m, half, half)`` of the scores of later against earlier halves."""
    count, length = scores.shape[0], scores.shape[1]
    stride = scores.stride()
    return scores.as_strided(
        (count, length // (2 * half), half, half),
        (stride[0], 2 * half * (stride[1] + stride[2]), stride[1], stride[2]),
        scores.storage_offset() + half * stride[1],
    )


class _ChannelScores(torch.autograd.Function):
    """Saves its inputs only; backward forms the products again, level by level."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        a = log_decay.exp()
        scores = q.new_zeros(q.shape[0], q.shape[1], q.shape[1])
        scores.diagonal(dim1=1, dim2=2).copy_((q * k).sum(-1))
        entered, leaving, total, half = q * a, k.clone(memory_format=torch.contiguous_format), a, 1
        while half < q.shape[1]:
            query, key = _later(entered, half), _earlier(leaving, half)
            _lower_left(scores, half).copy_(_products(query, key))
            first, second = _earlier(total, 1), _later(total, 1)  # one total per half
            query.mul_(first)
            key.mul_(second)
            total = (first * second).flatten(1, 2)
            half *= 2
        ctx.save_for_backward(q, k, log_decay)
        return scores, entered, leaving, total.flatten(1)

    @staticmethod
    @first_order("The torch backend under decay")
    def backward(
        ctx: Any, d_scores: Tensor | None, d_entered: Tensor | None, d_leaving: Tensor | None, d_total: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, log_decay = ctx.saved_tensors
        a = log_decay.exp()
        d_scores = q.new_zeros(*q.shape[:2], q.shape[1]) if d_scores is None else d_scores.contiguous()
        d_q, d_k = _fresh(d_entered, q), _fresh(d_leaving, k)

        levels = []
        query, key, total, half = q * a, k.clone(memory_format=torch.contiguous_format), a, 1
        while half < q.shape[1]:
            first, second = _earlier(total, 1), _later(total, 1)
            levels.append((_later(query, half).clone(), _earlier(key, half).clone(), first, second))
            _later(query, half).mul_(first)
            _earlier(key, half).mul_(second)
            total = (first * second).flatten(1, 2)
            half *= 2
        d_last = 0.0 if d_leaving is None else (d_k * key).sum(1)
        if d_total is not None:
            d_last = d_last + d_total * total.flatten(1)

        for query, key, first, second in reversed(levels):
            half //= 2
            d_query, d_key, d_block = _later(d_q, half), _earlier(d_k, half), _lower_left(d_scores, half)
            d_query.mul_(first).add_(_weighted(d_block, key))
            d_key.mul_(second).add_(_weighted(d_block.mT, query))
        d_q.mul_(a)

        d_log_decay = None
        if ctx.needs_input_grad[2]:
            d_G = (q * d_q).addcmul_(k, d_k, value=-1)
            d_G[:, -1] += d_last
            d_log_decay = d_G.new_ones(q.shape[1], q.shape[1]).triu() @ d_G
        own = d_scores.diagonal(dim1=1, dim2=2)[..., None]  # a token's score for itself has no decay in it
        return d_q.addcmul_(own, k), d_k.addcmul_(own, q), d_log_decay


def _fresh(gradient: Tensor | None, like: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(like, memory_format=torch.contiguous_format)
    return gradient.clone(memory_format=torch.contiguous_format)


def _products(q: Tensor, k: Tensor) -> Tensor:
    """``q @ k^T`` over blocks; tiny ones element by element, where a batched product is all overhead."""
    if q.shape[2] > 2:
        return q @ k.mT
    return (q[..., :, None, :] * k[..., None, :, :]).sum(-1)


def _weighted(weights: Tensor, x: Tensor) -> Tensor:
    """``weights @ x`` over blocks, likewise."""
    if x.shape[2] > 2:
        return weights @ x
    if x.shape[2] == 1:
        return weights * x
    return weights[..., :1] * x[..., :1, :] + weights[..., 1:] * x[..., 1:, :]
