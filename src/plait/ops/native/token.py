"""One token of a matrix recurrence through the compiled kernels.

Decoding calls this for every layer and token, so it asks little of Python: the arguments of the kernel are packed
into bytes at once, and nothing is converted that is fp32 and contiguous already.
"""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from plait.ops.native import guards
from plait.ops.native.kernel import Operator, resolved, tracing
from plait.ops.native.library import call

#: ``token`` of ``rows.c``: q k v beta log_decay before after o, heads group rows K V per_channel, scale.
_ARGUMENTS = struct.Struct("@8P6qf4x")
_FLOAT = torch.float32


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
    overwrite_state: bool,
) -> tuple[Tensor, Tensor]:
    """Linear attention (``beta`` None) or the delta rule for ``T == 1``, without gradient.

    Args:
        q, k, v, beta, log_decay, state: as in :mod:`plait.ops.recurrences`, with a decay for each row of the batch.
        scale: factor on ``q``.
        overwrite_state: the memory of ``state`` may hold the new state, where it is fp32 and contiguous and no
            gradient will ask for it; a traced graph makes a new one.

    Returns:
        Output in the dtype of ``v``, and the state after the token.
    """
    dtype, given = v.dtype, state
    q, k, v, beta, log_decay, state = map(_plain, (q, k, v, beta, log_decay, state))
    own = overwrite_state and state is given and state is not None and not state.requires_grad
    if own and not tracing():
        o, after = _run(q, k, v, beta, log_decay, scale, state, state)
    else:
        o, after = _step(q, k, v, beta, log_decay, scale, state)
    return (o if dtype is _FLOAT else o.to(dtype)), after


def _plain(x: Any) -> Any:
    """Fp32 and contiguous; None stays."""
    if x is None:
        return None
    x = resolved(x)
    return x if x.dtype is _FLOAT and x.is_contiguous() else x.float().contiguous()


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
    after: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Everything fp32 and contiguous; the new state goes to ``after``, or to new memory."""
    batch, _, heads, V = v.shape
    _, _, key_heads, K = q.shape
    o = torch.empty(batch, 1, heads, V, dtype=_FLOAT, device="cpu")  # whatever the defaults are
    if after is None:
        after = torch.empty(batch, heads, K, V, dtype=_FLOAT, device="cpu")
    arguments = _ARGUMENTS.pack(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        0 if beta is None else beta.data_ptr(),
        0 if log_decay is None else log_decay.data_ptr(),
        0 if state is None else state.data_ptr(),
        after.data_ptr(),
        o.data_ptr(),
        heads,
        heads // key_heads,
        batch * heads,
        K,
        V,
        log_decay is not None and log_decay.dim() == 4,
        scale,
    )
    call("step", arguments)
    return o, after


def _new(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return _run(q, k, v, beta, log_decay, scale, state)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(v.shape[0], v.shape[2], q.shape[3], v.shape[3])


_step = Operator("step", _new, guards.step, _fake)
