"""A recurrence on one piece of a longer sequence: what it holds alone, and what came before would add.

Every recurrence here is affine in the state that enters: the piece leaves ``transition(S) + state`` and puts out
``output + read(S)``. So pieces run at once, each from zeros, and a product of transitions joins them (LASP-2,
2502.07563, section 3, for one decay per head; the same holds for any decay and for the delta rule).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from plait.ops.recurrences import delta_rule, linear_attention, linear_scan


@dataclass
class Piece:
    """A recurrence run on a piece of n tokens from a state of zeros.

    Args:
        output: what it put out, ``(B, n, D)`` of a scan or ``(B, n, HV, V)``.
        state: what it left, ``(B, D)`` or ``(B, HV, K, V)``, in the state's dtype.
        transition: what the piece does to a state that enters: factors that broadcast over ``state``, or matrices
            ``(B, HV, K, K)`` if ``dense``.
        reads: how each output reads that state: factors ``(B or 1, n, D)`` of a scan, or queries
            ``(B, n, HV, K)`` with everything that the state has suffered before them.
        dense: whether ``transition`` is a product from the left.
        rate: log of the transition of a single token where all tokens share it, so that the transition of any other
            piece follows from its length; else None.
    """

    output: Tensor
    state: Tensor
    transition: Tensor
    reads: Tensor
    dense: bool = False
    rate: Tensor | None = None

    def continued(self, entering: Tensor) -> Tensor:
        """The output had the piece started from the state ``entering``, in the dtype of ``output``."""
        if self.output.dim() == 3:
            added = self.reads * entering[:, None]
        else:
            added = (self.reads.transpose(1, 2) @ entering).transpose(1, 2)
        return (self.output + added).to(self.output.dtype)


def scan_piece(log_a: Tensor, u: Tensor) -> Piece:
    """:func:`~plait.ops.linear_scan` on a piece; arguments and errors are the scan's."""
    output, state = linear_scan(log_a, u)
    decay = log_a.to(state.dtype).cumsum(1).exp()
    return Piece(output, state, decay[:, -1], decay)


def attention_piece(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None = None, *, scale: float | None = None
) -> Piece:
    """:func:`~plait.ops.linear_attention` on a piece; arguments and errors are that function's."""
    output, state = linear_attention(q, k, v, log_decay, scale=scale)
    length, heads, width = v.shape[1], v.shape[2], q.shape[3]
    reads = q.to(state.dtype) * (width**-0.5 if scale is None else scale)
    reads = reads.repeat_interleave(heads // q.shape[2], dim=2)
    if log_decay is None:
        log_decay = state.new_zeros(heads)
    log_decay = log_decay.to(state.dtype)
    if log_decay.dim() == 1:
        steps = torch.arange(1, length + 1, dtype=state.dtype, device=state.device)
        rate = log_decay[None, :, None, None]
        decay = (steps[:, None] * log_decay).exp()[None, ..., None]
        return Piece(output, state, (length * rate).exp(), reads * decay, rate=rate)
    if log_decay.dim() == 3:
        log_decay = log_decay[..., None]
    decay = log_decay.cumsum(1).exp()
    return Piece(output, state, decay[:, -1, :, :, None], reads * decay)


def delta_piece(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Piece:
    """:func:`~plait.ops.delta_rule` on a piece; arguments and errors are that function's.

    K further value columns that are never written, with the identity as their state, become the transition
    ``prod_t (I - beta_t k_t k_t^T) diag(e^{g_t})`` and its reads on the way.
    """
    batch, _, heads, width = v.shape
    keys = q.shape[3]
    dtype = torch.float64 if torch.float64 in (q.dtype, k.dtype, v.dtype) else torch.float32
    columns = F.pad(torch.eye(keys, dtype=dtype, device=v.device), (width, 0))
    output, state = delta_rule(
        q, k, F.pad(v, (0, keys)), beta, log_decay, scale=scale, state=columns.expand(batch, heads, -1, -1)
    )
    state, transition = state.split([width, keys], -1)
    output, reads = output.split([width, keys], -1)
    return Piece(output, state, transition, reads.to(state.dtype), dense=True)
