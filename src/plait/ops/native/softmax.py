"""Softmax attention over chosen keys through the compiled kernel.

A gathered product reads each key twice and writes it once before it multiplies; the kernel multiplies keys where they
lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plait.ops import checks
from plait.ops.dispatch import resolve
from plait.ops.native import guards
from plait.ops.native.kernel import Operator, resolved, tracing
from plait.ops.native.library import Softmax, call, pointer
from plait.ops.native.status import refuses

#: Queries that share a tile of keys where every key is seen.
_TOGETHER = 128


def serves(*tensors: Tensor) -> bool:
    """Whether the kernel can take these queries, keys and values: fp32 on a CPU, channels side by side, no gradient."""
    if tracing() or not all(
        x.is_cpu and x.dtype == torch.float32 and not x.is_neg() and (x.stride(-1) == 1 or x.shape[-1] == 1)
        for x in tensors
    ):
        return False
    if refuses(*tensors) is not None:
        return False
    return resolve("auto", "cpu") == "native" and not (
        torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor | None = None,
    counts: Tensor | None = None,
    *,
    scale: float,
    first: int,
    block: int = 64,
    page: int = 1,
    sums: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Causal attention of blocks of queries over chosen pages of keys.

    Args:
        q: ``(B, H, T, D)``.
        k, v: ``(B, G, S, D)`` and ``(B, G, S, Dv)``; slot s holds position s.
        index: ``(B, X, M, K)`` int64, ascending pages for each block of queries, X the number of kv heads, or of query
            heads where they choose for themselves; or all of them in one row, ``counts`` after ``counts``; None for
            every key.
        counts: ``(B, X, M)`` int64, how many entries of ``index`` each block has; None for all K.
        scale: factor on the scores.
        first: position of the first query; a query sees no later position.
        block: queries of a block, ``M = ceil(T / block)``.
        page: keys of a page.
        sums: also return what each key receives from all queries; without an index only.

    Returns:
        ``(B, H, T, Dv)``, and the sums ``(B, H, S)`` or None.

    Raises:
        OptionError: arguments that do not fit; the message names which.
    """
    some = checks.softmax(q, k, v, index, counts, scale, first, block, page, sums)
    batch, heads, length = q.shape[:3]
    o = q.new_empty(batch, heads, length, v.shape[3])
    received = q.new_zeros(batch, heads, k.shape[2]) if sums else None
    if not some or (index is not None and not index.numel()):  # an empty list has no address: it would mean every key
        return o.zero_(), received
    begin = end = None
    owners = heads
    if index is not None:
        index = index.contiguous()
        if index.dim() == 1:
            assert counts is not None
            owners, end = counts.shape[1], counts.flatten().cumsum(0)
            begin = end - counts.flatten()
        else:
            owners, begin = index.shape[1], _rows(index)
            end = begin + (index.shape[3] if counts is None else counts.flatten())
    lists = {"index": index, "begin": begin, "end": end}
    _run("softmax", q, k, v, {"o": o, "sums": received, **lists}, scale, X=owners, block=block, page=page, first=first)
    return o, received


def attend_held(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    held: Tensor,
    new: Tensor,
    starts: Tensor | None = None,
    *,
    scale: float,
    window: int = 0,
    sinks: int = 0,
    sums: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Causal attention where every row and key head holds its own number of keys, the new tokens' own last.

    Args:
        q: ``(B, H, T, D)``, the real queries of a row first.
        k, v: ``(B, G, S, D)`` and ``(B, G, S, Dv)``, keys first; or ``(P, D)`` and ``(P, Dv)``, packed.
        held: ``(B, G)`` int64, keys of each row and head.
        new: ``(B,)`` int64, real queries of each row: the last so many keys are theirs.
        starts: ``(B, G)`` int64, where the keys of each row and head begin, if they are packed.
        scale: factor on the scores.
        window: a query sees the last ``window`` keys up to its own, and
        sinks: those of the first ``sinks``; 0 for every key up to its own.
        sums: also return what each key receives from all queries.

    Returns:
        ``(B, H, T, Dv)``, zero at padding; the log of each query's sum ``(B, H, T)``; and the sums ``(B, H, S)``, S the
        largest of ``held``, or None.

    Raises:
        OptionError: arguments that do not fit; the message names which.
    """
    most = checks.softmax_held(q, k, v, held, new, starts, scale, window, sinks)
    batch, heads, length = q.shape[:3]
    o, lse = q.new_empty(batch, heads, length, v.shape[-1]), q.new_empty(batch, heads, length)
    received = q.new_zeros(batch, heads, most) if sums else None
    if not o.numel():
        return o, lse.fill_(float("-inf")), received
    held = held.contiguous()
    firsts = held - new[:, None]
    starts = None if starts is None else starts.contiguous()
    numbers = {"X": heads if sums else held.shape[1], "G": held.shape[1], "S": most}
    if starts is not None:
        k, v = k[None, None], v[None, None]
        numbers |= dict.fromkeys(("k_batch", "k_head", "v_batch", "v_head"), 0)
    tensors = {"o": o, "lse": lse, "sums": received, "starts": starts, "stored": held, "firsts": firsts}
    _run("softmax", q, k, v, tensors, scale, block=_TOGETHER, page=1, window=window, sinks=sinks, **numbers)
    return o, lse, received


def _rows(index: Tensor) -> Tensor:
    """Where the list of each block begins ``(B X M,)``."""
    count, size = index.shape[:3].numel(), index.shape[3]
    return torch.arange(count, device="cpu") * size


def _run(
    kernel: str, q: Tensor, k: Tensor, v: Tensor, tensors: Mapping[str, Tensor | None], scale: float, **numbers: int
) -> None:
    """Call a kernel on ``(B, heads, tokens, channels)``.

    Args:
        kernel: its name.
        q, k, v: queries, keys and values, which give sizes and strides.
        tensors: of the structure's other tensors, those that this call has.
        scale: factor on the scores.
        numbers: its other numbers, and sizes or strides that q, k and v do not show.
    """
    axes = ("batch", "head", "token")
    sizes = {f"{n}_{axis}": x.stride(i) for n, x in (("q", q), ("k", k), ("v", v)) for i, axis in enumerate(axes)}
    sizes |= dict(zip("BHTD", q.shape, strict=True))
    sizes |= {"G": k.shape[1], "S": k.shape[2], "DV": v.shape[3]}
    addresses = {name: pointer(x) for name, x in {"q": q, "k": k, "v": v, **tensors}.items()}
    call(kernel, Softmax(**addresses, **(sizes | numbers), scale=scale))


def over_lists(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: float,
    block: int,
    page: int,
    first: int,
    window: int = 0,
    sinks: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention over listed pages with the log of each query's sum; differentiable once.

    Args:
        q, k, v: ``(B, H, T, D)``, ``(B, G, S, D)`` and ``(B, G, S, Dv)`` in fp16, bf16 or fp32, checked.
        index: ``(B, X, M, K)``, X a multiple of G; or 1 in place of B and X, for the same list everywhere.
        counts: its first three axes.
        scale: factor on the scores.
        block, page, first: as in :func:`attend`.
        window: of the listed keys, a query sees the last ``window`` up to its own, and
        sinks: those of the first ``sinks`` of all; 0 for every listed key up to its own.

    Returns:
        ``(B, H, T, Dv)`` in v's dtype and ``(B, H, T)`` in fp32.
    """
    dtype = v.dtype
    q, k, v = map(_rows_of_channels, (q, k, v))
    o, lse = _lists(q, k, v, index, counts, scale, block, page, first, window, sinks)
    return o.to(dtype), lse


def _rows_of_channels(x: Tensor) -> Tensor:
    x = resolved(x.float())
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous(memory_format=torch.contiguous_format)


def _run_lists(
    kernel: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    tensors: Mapping[str, Tensor | None],
    scale: float,
    **numbers: int,
) -> None:
    """As :func:`_run`, with lists in the layout of :func:`over_lists`."""
    owners = k.shape[1] if index.shape[1] == 1 else index.shape[1]
    index = index.contiguous()
    begin = _rows(index).view(index.shape[:3])
    end = begin + counts
    begin, end = (x.expand(q.shape[0], owners, -1).contiguous() for x in (begin, end))
    _run(kernel, q, k, v, {**tensors, "index": index, "begin": begin, "end": end}, scale, X=owners, **numbers)


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: float,
    block: int,
    page: int,
    first: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    o, lse = _fake_forward(q, k, v, index, counts, scale, block, page, first, window, sinks)
    if not index.numel():  # an empty list has no address: it would mean every key
        return o.zero_(), lse.fill_(float("-inf"))
    numbers = {"block": block, "page": page, "first": first, "window": window, "sinks": sinks}
    _run_lists("softmax", q, k, v, index, counts, {"o": o, "lse": lse}, scale, **numbers)
    return o, lse


def _fake_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: float,
    block: int,
    page: int,
    first: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:3], v.shape[3]), q.new_empty(q.shape[:3])


def _gradients(
    d_o: Tensor,
    rest: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: float,
    block: int,
    page: int,
    first: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, kv_heads = k.shape[:2]
    d_q = q.new_empty(q.shape)
    parts = max(1, -(-torch.get_num_threads() // (batch * kv_heads)))
    d_k, d_v = (x.new_zeros(parts, *x.shape) for x in (k, v))
    if not index.numel():
        return d_q.zero_(), d_k[0], d_v[0]
    numbers = {"block": block, "page": page, "first": first, "window": window, "sinks": sinks, "parts": parts}
    tensors = {"d_o": d_o, "rest": rest, "lse": lse, "d_q": d_q, "d_k": d_k, "d_v": d_v}
    _run_lists("softmax_backward", q, k, v, index, counts, tensors, scale, **numbers)
    d_k, d_v = (x.sum(0) if parts > 1 else x[0] for x in (d_k, d_v))
    return d_q, d_k, d_v


def _fake_gradients(
    d_o: Tensor,
    rest: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    index: Tensor,
    counts: Tensor,
    scale: float,
    block: int,
    page: int,
    first: int,
    window: int,
    sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, index, counts, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, *output, index, counts)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_o: Tensor | None, d_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, o, lse, index, counts = ctx.saved_tensors
    d_o = torch.zeros_like(o) if d_o is None else resolved(d_o).contiguous()
    rest = (d_o * o).sum(-1)
    rest = rest if d_lse is None else rest - d_lse
    found = _lists_backward(d_o, rest.contiguous(), q, k, v, lse, index, counts, *ctx.numbers)
    return *found, *(None,) * 8


_lists = Operator("softmax_lists", _forward, guards.softmax_lists, _fake_forward, _setup, _backward)
_lists_backward = Operator("softmax_lists_backward", _gradients, guards.softmax_lists_backward, _fake_gradients)
