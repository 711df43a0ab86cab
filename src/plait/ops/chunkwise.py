"""The ``torch`` backend: chunkwise forms of the recurrences, a direct step for single tokens, any device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from plait.ops.chunked_attention import linear_attention
from plait.ops.chunked_delta import delta_rule
from plait.ops.chunks import choose_chunk, from_chunks, to_chunks
from plait.ops.packing import Borders, Packing
from plait.ops.scan import linear_scan
from plait.ops.segments import cut, run_segments

__all__ = ["attend", "linear_scan"]

#: Longer sequences run in segments of about this many tokens, which bounds what backward keeps.
SEGMENT = 512


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Linear attention (``beta`` None) or the delta rule; ``q`` is scaled, everything is in the compute dtype."""
    length = v.shape[1]
    if log_decay is None:
        log_decay = v.new_zeros(1, 1, 1).expand(1, length, 1)
    elif log_decay.dim() == 1:
        log_decay = log_decay.expand(1, length, -1)
    if length == 1 and cu_seqlens is None:
        return _step(q, k, v, beta, log_decay, state)
    lengths = [length] if cu_seqlens is None else cu_seqlens.diff().tolist()
    chunk = choose_chunk(lengths, chunk_size, per_channel=log_decay.dim() == 4)
    run = partial(_run, chunk)
    inputs: list[Tensor | None] = [q, k, v, beta, log_decay]
    size = max(SEGMENT // chunk, 1) * chunk
    if cu_seqlens is None:
        if length <= size:
            o, state, _ = run(inputs, state, None, None)
        else:
            o, state, _ = run_segments(run, cut(length, size, chunk, None), inputs, state, None)
        return o, state
    packing = Packing.of(cu_seqlens.to(v.device), chunk)
    if state is None:
        state = v.new_zeros(len(lengths), v.shape[2], q.shape[3], v.shape[3])
    inputs = [None if x is None else packing.lay_out(x) for x in inputs]
    if packing.length <= size:
        o, _, finished = run(inputs, None, state, packing.borders)
    else:
        segments = cut(packing.length, size, chunk, packing.borders)
        o, _, finished = run_segments(run, segments, inputs, None, state)
    assert finished is not None  # the last chunk ends a document
    return packing.take_back(o), finished


def _run(
    chunk: int, parts: Sequence[Tensor | None], state: Tensor | None, own: Tensor | None, borders: Borders | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One segment, see :class:`plait.ops.segments.Run`."""
    q, k, v, beta, log_decay = parts
    assert q is not None
    assert k is not None
    assert v is not None
    assert log_decay is not None
    length, heads = v.shape[1:3]
    q, k, v = (to_chunks(x, chunk, heads) for x in (q, k, v))
    log_decay = to_chunks(log_decay, chunk, log_decay.shape[2])
    if beta is None:
        o, state, finished = linear_attention(q, k, v, log_decay, state, own, borders)
    else:
        o, state, finished = delta_rule(q, k, v, to_chunks(beta, chunk, heads), log_decay, state, own, borders)
    return from_chunks(o, length), state, finished


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor | None, log_decay: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token: decay, (erase,) write, read."""
    heads = v.shape[2]
    if q.shape[2] != heads:
        q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
    q, k, v = q[:, 0, :, None], k[:, 0, :, None], v[:, 0, :, None]  # (B, HV, 1, K or V)
    if state is not None:
        decay = log_decay[:, 0].exp()
        state = state * (decay[..., None] if decay.dim() == 3 else decay[..., None, None])
    if beta is not None:
        v = beta[:, 0, :, None, None] * (v if state is None else v - k @ state)
    written = k.mT * v
    state = written if state is None else state + written
    return (q @ state).movedim(2, 1), state
