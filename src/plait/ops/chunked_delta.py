"""The delta rule chunk by chunk: the UT transform (DeltaNet, 2406.06484; gated form 2412.06464)."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops.chunks import chain
from plait.ops.decay import HeadDecay, channel_scores, head_scores
from plait.ops.packing import Borders


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    own: Tensor | None = None,
    borders: Borders | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values corrected inside the chunk by one triangular solve, then read and written like linear attention.

    ``A_ij = beta_i (k_i . k_j) D_ij`` for ``i > j``; ``[U, W] = (I + A)^{-1} diag(beta) [V, e^G K]``;
    ``N = U - W S_0``; ``O = ((Q K^T) o D) N + e^G Q S_0``; ``S_C = e^{G_C} S_0 + (e^{G_C - G} K)^T N``.
    The solve is exact substitution in the compute dtype (fp32 or fp64): powers of ``A`` grow with repeated keys.

    Args:
        q: scaled queries ``(B, H, n, C, K)``.
        k: keys ``(B, H, n, C, K)``.
        v: values ``(B, H, n, C, V)``.
        beta: writing strengths ``(B, H, n, C)``.
        log_decay: ``(B or 1, H or 1, n, C)`` per head or ``(B, H, n, C, K)`` per channel.
        state: entering state ``(B, H, K, V)``, None for zeros.
        own: see :func:`plait.ops.chunks.chain`.
        borders: see :func:`plait.ops.chunks.chain`.

    Returns:
        Output ``(B, H, n, C, V)``, last state, states of the documents that ended.
    """
    beta = beta[..., None]
    if log_decay.dim() == 5:
        scores, entered, leaving, total = channel_scores(q, k, log_decay)
        A, keys, _, _ = channel_scores(beta * k, k, log_decay)
    else:
        decay = HeadDecay.of(log_decay)
        scores, entered, leaving, total = head_scores(q, k, decay)
        A, keys, _, _ = head_scores(beta * k, k, decay)
    single = state is None and borders is None and q.shape[2] == 1
    right = beta * v if single else torch.cat([beta * v, keys], -1)
    solved = torch.linalg.solve_triangular(A, right, upper=False, unitriangular=True)  # reads A below the diagonal
    if single:
        return scores @ solved, (leaving.mT @ solved)[:, :, 0], None
    U, W = solved.split([v.shape[4], q.shape[4]], -1)
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[1], q.shape[4], v.shape[4])
    # S_C = transition S_0 + written, so that the loop over chunks is one product a step.
    written = leaving.mT @ U
    transition = torch.diag_embed(total.expand(*q.shape[:3], q.shape[4])) - leaving.mT @ W
    moved, added = transition.unbind(2), written.unbind(2)
    states, state, finished = chain(lambda c, S: added[c] + moved[c] @ S, q.shape[2], state, own, borders)
    return scores @ (U - W @ states) + entered @ states, state, finished
