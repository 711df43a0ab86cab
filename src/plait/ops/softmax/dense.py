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
    dtype, group = torch.promote_types(q.dtype, torch.float32), q.shape[1] // k.shape[1]
    wide_k, wide_v = (x.to(dtype).repeat_interleave(group, dim=1) for x in (k, v))
    scores = (q.to(dtype) * scale) @ wide_k.mT
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    mask = mask.expand(scores.shape)
    empty = ~mask.any(-1)
    # a row without keys has no softmax: it goes through as one of equal weights, which are then left out
    scores = scores.masked_fill(~mask, float("-inf")).masked_fill(empty[..., None], 0)
    lse = scores.logsumexp(-1)
    weights = (scores - lse[..., None]).exp().masked_fill(~mask, 0)
    return (weights @ wide_v).to(v.dtype), lse.masked_fill(empty, float("-inf"))
