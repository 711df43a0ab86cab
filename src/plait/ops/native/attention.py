"""Linear attention and the delta rule through the compiled kernels, registered as operators of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plait.ops.native import guards, token
from plait.ops.native.guards import BLOCK
from plait.ops.native.kernel import Operator, resolved
from plait.ops.native.library import TYPES, Attention, Rows, address, call, integers, pointer


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
    overwrite_state: bool,
) -> tuple[Tensor, Tensor]:
    """Linear attention (``beta`` None) or the delta rule; shapes as in :mod:`plait.ops.recurrences`, checked there."""
    if log_decay is not None and log_decay.dim() == 1:
        log_decay = log_decay.expand(*v.shape[:2], -1)
    given = (q, k, v, beta, log_decay, state)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    if v.shape[1] == 1 and cu_seqlens is None and not wanted:
        return token.attend(q, k, v, beta, log_decay, scale, state, overwrite_state)
    dtype = v.dtype
    q, k, v = (_channels_last(resolved(x) if x.dtype in TYPES else x.float()) for x in (q, k, v))
    beta, log_decay, state = (None if x is None else resolved(x.float()) for x in (beta, log_decay, state))
    if log_decay is not None and log_decay.dim() == 4:
        log_decay = _channels_last(log_decay)
    size = max(BLOCK, chunk_size // BLOCK * BLOCK)
    o, last, _ = _attention(q, k, v, beta, log_decay, state, cu_seqlens, scale, size, wanted)
    return o.to(dtype), last


def _channels_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@dataclass(frozen=True)
class _Sequences:
    """Rows of the batch, or packed documents in one row; in C arrays: row, first token, tokens, chunks before it."""

    row: Any
    first: Any
    length: Any
    chunk: Any
    count: int
    chunks: int
    longest: int

    @classmethod
    def of(cls, v: Tensor, cu_seqlens: Tensor | None, size: int) -> _Sequences:
        if cu_seqlens is None:
            rows, firsts, lengths = list(range(v.shape[0])), [0] * v.shape[0], [v.shape[1]] * v.shape[0]
        else:
            borders = cu_seqlens.tolist()
            firsts, lengths = borders[:-1], [b - a for a, b in pairwise(borders)]
            rows = [0] * len(firsts)
        chunks = [0]
        for length in lengths:
            chunks.append(chunks[-1] + -(-length // size))
        return cls(
            row=integers(rows),
            first=integers(firsts),
            length=integers(lengths),
            chunk=integers(chunks),
            count=len(rows),
            chunks=chunks[-1],
            longest=max(lengths, default=0),
        )


def _arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    sequences: _Sequences,
    scale: float,
    size: int,
    **more: Any,
) -> Attention:
    return Attention(
        q=Rows.of(q),
        k=Rows.of(k),
        v=Rows.of(v),
        beta=Rows.of(beta),
        log_decay=Rows.of(log_decay),
        state=pointer(state),
        row=address(sequences.row),
        first=address(sequences.first),
        length=address(sequences.length),
        chunk=address(sequences.chunk),
        sequences=sequences.count,
        heads=v.shape[2],
        group=v.shape[2] // q.shape[2],
        K=q.shape[3],
        V=v.shape[3],
        size=min(size, max(BLOCK, -(-sequences.longest // BLOCK) * BLOCK)),  # scratch for no more than there is
        per_channel=log_decay is not None and log_decay.dim() == 4,
        scale=scale,
        **more,
    )


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, last states, and for ``keep`` the state that enters each chunk ``(chunks, HV, K, V)``."""
    sequences = _Sequences.of(v, cu_seqlens, size)
    state = None if state is None else state.contiguous()
    matrix = (v.shape[2], q.shape[3], v.shape[3])
    o = v.new_empty(v.shape)
    last = q.new_empty(sequences.count, *matrix, dtype=torch.float32)
    saved = q.new_empty(sequences.chunks if keep else 0, *matrix, dtype=torch.float32)
    arguments = _arguments(
        q,
        k,
        v,
        beta,
        log_decay,
        state,
        sequences,
        scale,
        size,
        o=Rows.of(o),
        last=pointer(last),
        saved=pointer(saved) if keep else None,
    )
    call("attention_forward", arguments)
    return o, last, saved


def _fake_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    size: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    count = v.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    matrix = (v.shape[2], q.shape[3], v.shape[3])
    chunks: int | torch.SymInt
    if not keep:
        chunks = 0
    elif cu_seqlens is None:
        chunks = count * ((v.shape[1] + size - 1) // size)
    else:
        chunks = torch.library.get_ctx().new_dynamic_size()
    last = q.new_empty(count, *matrix, dtype=torch.float32)
    return v.new_empty(v.shape), last, q.new_empty(chunks, *matrix, dtype=torch.float32)


def _gradients(
    d_o: Tensor,
    d_last: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    last: Tensor,
    saved: Tensor,
    scale: float,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k (for each value head), v, beta, log_decay and state; empty for what is absent."""
    sequences = _Sequences.of(v, cu_seqlens, size)
    d_o = _channels_last(resolved(d_o))
    d_last = None if d_last is None else resolved(d_last).contiguous()
    gradients = _empty_gradients(q, k, v, beta, log_decay, state)
    d_q, d_k, d_v, d_beta, d_log_decay, d_state = gradients
    arguments = _arguments(
        q,
        k,
        v,
        beta,
        log_decay,
        state,
        sequences,
        scale,
        size,
        last=pointer(last),
        saved=pointer(saved),
        d_o=Rows.of(d_o),
        d_last=pointer(d_last),
        d_q=Rows.of(d_q),
        d_k=Rows.of(d_k),
        d_v=Rows.of(d_v),
        d_beta=Rows.of(None if beta is None else d_beta),
        d_log_decay=Rows.of(None if log_decay is None else d_log_decay),
        d_state=None if state is None else pointer(d_state),
    )
    call("attention_backward", arguments)
    return gradients


def _fake_gradients(
    d_o: Tensor,
    d_last: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    last: Tensor,
    saved: Tensor,
    scale: float,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(q, k, v, beta, log_decay, state)


def _empty_gradients(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor | None, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    keys = (*v.shape[:3], q.shape[3])
    optional = (x.new_empty(x.shape) if x is not None else v.new_empty(0) for x in (beta, log_decay, state))
    return q.new_empty(keys), k.new_empty(keys), v.new_empty(v.shape), *optional  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, beta, log_decay, state, cu_seqlens, scale, size, keep = inputs
    _, last, saved = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, beta, log_decay, state, cu_seqlens, last, saved)
    ctx.scale, ctx.size, ctx.kept = scale, size, keep


def _backward(ctx: Any, d_o: Tensor | None, d_last: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, beta, log_decay, state, cu_seqlens, last, saved = ctx.saved_tensors
    if not ctx.kept:
        raise RuntimeError("plait::attention was called with keep=False, which leaves nothing for its backward.")
    if d_o is None:
        d_o = torch.zeros_like(v)
    state = None if state is None else state.contiguous()
    found = _attention_backward(
        d_o.to(v.dtype), d_last, q, k, v, beta, log_decay, state, cu_seqlens, last, saved, ctx.scale, ctx.size
    )
    d_q, d_k = (x if x.shape[2] == q.shape[2] else x.unflatten(2, (q.shape[2], -1)).sum(3) for x in found[:2])
    present = (None if x is None else d_x for x, d_x in zip((beta, log_decay, state), found[3:], strict=True))
    return d_q, d_k, found[2], *present, None, None, None, None


_attention = Operator("attention", _forward, guards.attention, _fake_forward, _setup, _backward)
_attention_backward = Operator("attention_backward", _gradients, guards.attention_backward, _fake_gradients)
