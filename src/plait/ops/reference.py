"""The recurrences as loops over time: the oracle that every other backend must equal.

Inputs are checked and in the compute dtype; ``q`` is already scaled. Shapes as in :mod:`plait.ops.recurrences`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def linear_scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """``h_t = exp(log_a_t) h_{t-1} + u_t``, one step at a time."""
    if cu_seqlens is not None and len(cu_seqlens) > 1:
        pieces = [
            linear_scan(log_a[:, first:last], u[:, first:last], None if state is None else state[n : n + 1], None)
            for n, (first, last) in enumerate(pairwise(cu_seqlens.tolist()))
        ]
        return torch.cat([h for h, _ in pieces], 1), torch.cat([s for _, s in pieces])
    if cu_seqlens is not None:  # no document
        return u, u.new_zeros(0, u.shape[2])
    h = u.new_zeros(u.shape[0], u.shape[2]) if state is None else state
    if not u.shape[1]:
        return u, h.clone()
    steps = []
    for t in range(u.shape[1]):
        h = log_a[:, t].exp() * h + u[:, t]
        steps.append(h)
    return torch.stack(steps, 1), h


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """Linear attention (``beta`` None) or the delta rule, one token at a time; ``chunk_size`` has no meaning here.

    ``S~ = diag(e^{g_t}) S_{t-1}``, then ``S_t = S~ + k_t v_t^T`` or ``S_t = S~ + beta_t k_t (v_t - S~^T k_t)^T``,
    then ``o_t = S_t^T q_t``.
    """
    if cu_seqlens is not None and len(cu_seqlens) > 1:
        pieces = []
        for n, (first, last) in enumerate(pairwise(cu_seqlens.tolist())):
            part = slice(first, last)
            pieces.append(
                attend(
                    q[:, part],
                    k[:, part],
                    v[:, part],
                    None if beta is None else beta[:, part],
                    log_decay if log_decay is None or log_decay.dim() == 1 else log_decay[:, part],
                    None if state is None else state[n : n + 1],
                    None,
                )
            )
        return torch.cat([o for o, _ in pieces], 1), torch.cat([s for _, s in pieces])
    batch, length, value_heads, value_width = v.shape
    if cu_seqlens is not None:  # no document
        return v, v.new_zeros(0, value_heads, q.shape[3], value_width)
    groups = value_heads // max(q.shape[2], 1)
    q, k = (x.repeat_interleave(groups, dim=2) for x in (q, k))
    S = v.new_zeros(batch, value_heads, q.shape[3], value_width) if state is None else state
    if not length:
        return v, S.clone()
    outputs = []
    for t in range(length):
        if log_decay is not None:
            S = S * _decay(log_decay, t)
        write = v[:, t]
        if beta is not None:
            write = beta[:, t, :, None] * (write - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], write)
        outputs.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
    return torch.stack(outputs, 1), S


def _decay(log_decay: Tensor, t: int) -> Tensor:
    """Decay of step ``t``, to multiply states ``(B, HV, K, V)``."""
    if log_decay.dim() == 1:
        return log_decay.exp()[:, None, None]
    step = log_decay[:, t].exp()
    return step[..., None] if step.dim() == 3 else step[..., None, None]
