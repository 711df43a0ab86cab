"""Softmax attention by its definition, on one dense matrix of scores: exact in fp64, differentiable twice."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``softmax(cap(scale Q K^T) + bias) V`` over the visible keys, and the log of each query's sum.

    Args:
        q, k, v: ``(B, H, T, D)``, ``(B, N, S, D)``, ``(B, N, S, Dv)``.
        mask: bool, broadcasts to ``(B, H, T, S)``.
        scale: factor on the scores.
        softcap: c of ``c tanh(x / c)``, or None.
        bias: broadcasts to ``(B, H, T, S)``, or None.

    Returns:
        ``(B, H, T, Dv)`` and ``(B, H, T)``.
    """
    weights, lse = normalised(scores(q, k, mask, scale, softcap, bias))
    values = v.to(weights.dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (weights @ values).to(v.dtype), lse


def scores(
    q: Tensor, k: Tensor, mask: Tensor, scale: float, softcap: float | None, bias: Tensor | None = None
) -> Tensor:
    """``cap(scale Q K^T) + bias`` in fp32 at least, minus infinity where nothing is seen; see :func:`attention`."""
    dtype, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    scores = (q.to(dtype) * scale) @ k.to(dtype).repeat_interleave(group, dim=1).mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    return scores.masked_fill(~mask, float("-inf"))


def normalised(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of scores and the log of each row's sum; a row without keys has zeros and minus infinity."""
    seen = scores != float("-inf")
    empty = ~seen.any(-1)
    # a row without keys has no softmax: it goes through as one of equal weights, which are then left out
    scores = scores.masked_fill(empty[..., None], 0)
    lse = scores.logsumexp(-1) if scores.shape[-1] else scores.new_zeros(empty.shape)
    return (scores - lse[..., None]).exp().masked_fill(~seen, 0), lse.masked_fill(empty, float("-inf"))


def share(lse: Tensor, sink_logits: Tensor) -> Tensor:
    """What is left of each row's weights beside sinks.

    Args:
        lse: ``(B, H, T)``, the log of each row's sum without them.
        sink_logits: ``(H,)`` or ``(H, m)``.
    """
    sinks = sink_logits.to(lse.dtype).reshape(sink_logits.shape[0], -1).logsumexp(-1)
    return torch.sigmoid(lse - sinks[:, None])
