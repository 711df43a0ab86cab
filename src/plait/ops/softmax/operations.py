"""``attention``, ``merge`` and ``sparse_attention``: arguments, choice of a backend, and what all backends share."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from math import lcm

import torch
from torch import Tensor

from plait.errors import BackendUnavailable, OptionError, nearest
from plait.ops import checks, native
from plait.ops.dispatch import overridden, resolve
from plait.ops.native.kernel import tracing
from plait.ops.native.softmax import over_lists
from plait.ops.softmax import blocks, dense, flex, fused, lists
from plait.ops.softmax.rows import Rows
from plait.ops.visibility import Blocks, Causal, Full, Lists, Power, Visibility, Window

BACKENDS = ("reference", "torch", "native", "flex")

Result = tuple[Tensor, Tensor]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: Tensor | None = None,
    sink_logits: Tensor | None = None,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    first: int | None = None,
    backend: str = "auto",
) -> Result:
    """Softmax attention (1706.03762) over the keys that a visibility shows, and the log of each query's sum.

    Scores are ``softcap tanh(scale q k / softcap) + bias``. Work and memory are those of the visible pairs, also in
    the backward, but on ``reference``.

    Args:
        q: queries ``(B, T, H, D)``.
        k: keys ``(B, S, N, D)``, N a divisor of H: query head ``h`` reads key head ``h // (H / N)``.
        v: values ``(B, S, N, Dv)``.
        visibility: which keys a query sees; both are counted from the first real token of their row or document.
        scale: factor on the products; None for ``D ** -0.5``.
        softcap: bound on the scores' size (2408.00118, section 2); None for none.
        bias: added to the scores, ``(B, H, T, S)`` or 1 on any axis.
        sink_logits: ``(H,)`` or ``(H, m)``: terms of each head's denominator without a value.
        lengths: ``(B,)`` real tokens of each row, which stand at its end; those before are padding. None: all are real.
        cu_seqlens: ``(N + 1,)`` borders of documents in a single row; then T and S are equal.
        first: slot of the first query among the keys; None for ``S - T``.
        backend: ``auto``, ``reference`` (dense), ``torch`` (blocks), ``native`` (compiled, CPU) or ``flex`` (CUDA).

    Returns:
        ``(B, T, H, Dv)`` in v's dtype, and the natural logarithm of each query's sum ``(B, T, H)`` in fp32 (fp64 for
        fp64), with the sinks. A query that sees no key has an output of 0 and a sum of 0, which is a log of ``-inf``.

    Raises:
        OptionError: arguments that do not fit; the message names which.
        BackendUnavailable: the backend cannot serve here, or a second derivative was asked of it.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = lowered(q, k, v)
            return attention(
                q,
                k,
                v,
                visibility,
                scale=scale,
                softcap=softcap,
                bias=bias,
                sink_logits=sink_logits,
                lengths=lengths,
                cu_seqlens=cu_seqlens,
                first=first,
                backend=backend,
            )
    scale, starts, borders, first = checks.softmax_attention(
        q, k, v, visibility, scale, softcap, bias, sink_logits, lengths, cu_seqlens, first
    )
    parts = []
    for low, high, seen in _runs_of_heads(visibility, q.shape[2]):
        part = _heads(bias, low, high, 1)
        rows = Rows(seen, first, starts, borders)
        heads = q[:, :, low:high], *(_key_heads(x, low, high, q.shape[2]) for x in (k, v))
        one_q, one_k, one_v = (x.transpose(1, 2) for x in heads)
        parts.append(_attention(one_q, one_k, one_v, rows, scale, softcap, part, backend))
    o, lse = parts[0] if len(parts) == 1 else (torch.cat(both, dim=1) for both in zip(*parts, strict=True))
    return with_sinks(o.transpose(1, 2), lse.transpose(1, 2), sink_logits)


def merge(*parts: Result) -> Result:
    """Joins softmaxes over sets of keys that have nothing in common into the softmax over all of them.

    Args:
        parts: of each set, its output ``(B, T, H, Dv)`` and the log of its sum ``(B, T, H)``.

    Returns:
        The same of all keys together. Differentiable, twice too.

    Raises:
        OptionError: no parts, or shapes that differ.
    """
    if not parts:
        raise OptionError("merge: nothing to join; pass at least one pair of an output and the log of its sum.")
    for o, lse in parts:
        if o.shape != parts[0][0].shape or lse.shape != o.shape[:-1]:
            raise OptionError(
                f"merge: each part must be an output {tuple(parts[0][0].shape)} with a log of its sum "
                f"{tuple(parts[0][0].shape[:-1])}, got {tuple(o.shape)} with {tuple(lse.shape)}."
            )
    sums = torch.stack([lse for _, lse in parts])
    most = sums.detach().amax(0)
    most = most.masked_fill(most == float("-inf"), 0)
    shares = (sums - most).exp()
    total = shares.sum(0)
    empty = total == 0
    total = total.masked_fill(empty, 1)
    o = sum(share[..., None] * o for share, (o, _) in zip(shares / total, parts, strict=True))
    return o.to(parts[0][0].dtype), (most + total.log()).masked_fill(empty, float("-inf"))  # type: ignore[union-attr]


def attention_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visibility: Visibility,
    o: Tensor,
    lse: Tensor,
    d_o: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients through a part of the keys, when :func:`merge` has joined it with others.

    The gradients of q from all parts sum to its gradient. Only the output and the log of the sums of the whole are
    needed, so what passes around a ring is keys, values and their gradients.

    Args:
        q, k, v, visibility, scale, backend: as in :func:`attention`, of the part; queries stand at its last slots.
        o: ``(B, T, H, Dv)`` over all parts.
        lse: ``(B, T, H)`` over all parts.
        d_o: gradient of o.

    Returns:
        Gradients of q, k and v.

    Raises:
        OptionError, BackendUnavailable: as :func:`attention`.
    """
    scale, _, _, first = checks.softmax_attention(q, k, v, visibility, scale, None, None, None, None, None, None)
    q, k, v, o, lse, d_o = (x.transpose(1, 2) for x in (q, k, v, o, lse, d_o))
    name, automatic = _backend(backend, q)
    square = not first and q.shape[2] == k.shape[2]
    fusable = isinstance(visibility, Full) or (isinstance(visibility, Causal) and square)
    if automatic and name == "torch" and q.is_cpu and fusable:
        found = fused.gradients(q, k, v, o, lse, d_o, visibility.causal, scale)
    else:
        found = blocks.gradients(q, k, v, None, o, lse, d_o, None, Rows(visibility, first), scale, None)[:3]
    return tuple(x.transpose(1, 2) for x in found)  # type: ignore[return-value]


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor | None,
    *,
    block: int,
    page: int,
    scale: float | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    first: int = 0,
    backend: str = "auto",
) -> Result:
    """Causal softmax attention over chosen pages of keys, chosen for each block of queries or for each query.

    Args:
        q, k, v: as in :func:`attention`.
        index: ``(B, X, M, K)`` int64, pages of keys for each of ``M = ceil(T / block)`` blocks of queries, each page
            at most once; X divides H, and list x is that of the query heads from ``x H / X`` on.
        counts: ``(B, X, M)`` int64, how many of the K pages count, the first ones; None for all.
        block: queries of a block, 1 for a list a query.
        page: keys of a page; page p holds the keys from ``p page`` on. A query sees those up to its own.
        scale, softcap, sink_logits, backend: as in :func:`attention`.
        first: slot of the first query among the keys.

    Returns:
        As :func:`attention`.

    Raises:
        OptionError, BackendUnavailable: as :func:`attention`.
    """
    if torch.is_autocast_enabled(q.device.type):
        with torch.autocast(q.device.type, enabled=False):
            q, k, v = lowered(q, k, v)
            return sparse_attention(
                q,
                k,
                v,
                index,
                counts,
                block=block,
                page=page,
                scale=scale,
                softcap=softcap,
                sink_logits=sink_logits,
                first=first,
                backend=backend,
            )
    scale, counts = checks.sparse_softmax(q, k, v, index, counts, block, page, scale, softcap, sink_logits, first)
    owners = lcm(index.shape[1], k.shape[2])
    index, counts = (x.repeat_interleave(owners // x.shape[1], dim=1) for x in (index, counts))
    chosen = Lists(index, counts, block, page, first)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not q.numel() or not k.numel() or not v.numel():
        o, lse = _nothing(q, v)
    else:
        o, lse = _sparse(q, k, v, chosen, scale, softcap, backend)
    return with_sinks(o.transpose(1, 2), lse.transpose(1, 2), sink_logits)


def lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast hands tensors to PyTorch's own attention: in its dtype, but for fp64. Sums stay in fp32."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Rows,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
    backend: str,
) -> Result:
    """On heads side by side, ``(B, heads, tokens, channels)``, all with one visibility."""
    name, automatic = _backend(backend, q)
    if not q.numel() or not k.numel() or not v.numel():
        return _nothing(q, v)
    if name == "reference":
        slots = torch.arange(k.shape[2], device=q.device)
        queries = torch.arange(rows.first, rows.first + q.shape[2], device=q.device)
        return dense.attention(q, k, v, rows.mask(queries, slots), scale, softcap, bias)
    if name == "flex":
        return flex.attention(q, k, v, rows, scale, softcap, bias)
    plain = isinstance(rows.visibility, (Full, Causal)) and softcap is None and bias is None and q.is_cpu
    if automatic and plain and not native.transform():
        return _by_rows(q, k, v, rows, partial(_fused, causal=rows.visibility.causal, scale=scale))
    if name == "native" or (automatic and q.is_cpu):
        reason = _native_refuses(q, k, v, rows, softcap, bias)
        if reason is None:
            return _by_rows(q, k, v, rows, partial(_compiled, visibility=rows.visibility, scale=scale))
        if not automatic:
            raise BackendUnavailable(f"Backend 'native' cannot serve: {reason}. To fix it: use backend=\"torch\".")
    return blocks.attention(q, k, v, rows, scale, softcap, bias)


def _sparse(
    q: Tensor, k: Tensor, v: Tensor, chosen: Lists, scale: float, softcap: float | None, backend: str
) -> Result:
    name, automatic = _backend(backend, q)
    if name == "reference":
        seen = chosen.mask(chosen.first + q.shape[2])
        seen = torch.nn.functional.pad(seen, (0, k.shape[2] - seen.shape[3]))
        mask = seen.repeat_interleave(q.shape[1] // seen.shape[1], dim=1)
        return dense.attention(q, k, v, mask, scale, softcap, None)
    if name == "flex":
        return flex.sparse(q, k, v, chosen, scale, softcap)
    if name == "native" or (automatic and q.is_cpu):
        reason = native.absent() or native.refuses(q, k, v) or ("its kernels know no softcap" if softcap else None)
        if reason is None:
            sizes = (chosen.block, chosen.page, chosen.first)
            return over_lists(q, k, v, chosen.index, chosen.counts, scale, *sizes)
        if not automatic:
            raise BackendUnavailable(f"Backend 'native' cannot serve: {reason}. To fix it: use backend=\"torch\".")
    return lists.attention(q, k, v, chosen, scale, softcap)


def _backend(asked: str, q: Tensor) -> tuple[str, bool]:
    """The backend to run, and whether it was left to the choice by device."""
    if asked == "auto":
        if overridden() and (name := resolve("auto", q.device.type)) in BACKENDS:
            return name, False
        return ("flex" if flex.refuses(q) is None else "torch"), True
    if asked not in BACKENDS:
        raise OptionError(f"There is no backend named {asked!r} for softmax.{nearest(asked, [*BACKENDS, 'auto'])}")
    reason = flex.refuses(q) if asked == "flex" else None
    if reason is not None:
        raise BackendUnavailable(f"Backend 'flex' cannot serve: {reason}. To fix it: use backend=\"torch\".")
    return asked, False


def _by_rows(q: Tensor, k: Tensor, v: Tensor, rows: Rows, function: Callable[..., Result]) -> Result:
    """Documents and padded rows one by one, without what they do not see: ``function(q, k, v, first)`` on each."""
    if rows.borders is not None:
        sizes = [high - low for low, high in pairwise(rows.borders)]
        parts = [function(*x, 0) for x in zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True)]
        return torch.cat([o for o, _ in parts], dim=2), torch.cat([lse for _, lse in parts], dim=2)
    if rows.starts is None:
        return function(q, k, v, rows.first)
    starts = rows.starts.tolist()
    if not any(starts):
        return function(q, k, v, rows.first)
    parts = []
    for start, *x in zip(starts, *(x.split(1) for x in (q, k, v)), strict=True):
        skipped = min(max(0, start - rows.first), q.shape[2])
        queries, keys, values = x[0][:, :, skipped:], x[1][:, :, start:], x[2][:, :, start:]
        if not queries.numel() or not keys.numel():
            o, lse = _nothing(queries, values)
        else:
            o, lse = function(queries, keys, values, rows.first + skipped - start)
        o = torch.nn.functional.pad(o, (0, 0, skipped, 0))
        parts.append((o, torch.nn.functional.pad(lse, (skipped, 0), value=float("-inf"))))
    return torch.cat([o for o, _ in parts]), torch.cat([lse for _, lse in parts])


def _fused(q: Tensor, k: Tensor, v: Tensor, first: int, *, causal: bool, scale: float) -> Result:
    """Keys before the first query are seen by all, the others causally: the kernel counts both from 0."""
    if not causal:
        return fused.attention(q, k, v, False, scale)
    last = first + q.shape[2]
    if q.shape[2] == 1:
        return fused.attention(q, k[:, :, :last], v[:, :, :last], False, scale)
    own = fused.attention(q, k[:, :, first:last], v[:, :, first:last], True, scale)
    if not first:
        return own
    return merge(fused.attention(q, k[:, :, :first], v[:, :, :first], False, scale), own)


def _compiled(q: Tensor, k: Tensor, v: Tensor, first: int, *, visibility: Visibility, scale: float) -> Result:
    """The compiled kernel on the lists of a visibility, which say with a window's two numbers all that it shows."""
    # tensors made under a tracer belong to its graph: they are not kept
    chosen = (_new_lists if tracing() else _lists_of)(visibility, first + q.shape[2], first)
    within = (visibility.window, visibility.sinks) if isinstance(visibility, Window) else (0, 0)
    sizes = (chosen.block, chosen.page, chosen.first)
    return over_lists(q, k, v, chosen.index, chosen.counts, scale, *sizes, *within)


def _new_lists(visibility: Visibility, length: int, first: int) -> Lists:
    if isinstance(visibility, (Blocks, Power)):
        return visibility.blocks(length, visibility.size, visibility.size, first)
    return visibility.blocks(length, 64, 16, first)


_lists_of = lru_cache(maxsize=64)(_new_lists)


def _native_refuses(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, softcap: float | None, bias: Tensor | None
) -> str | None:
    """Why the compiled kernel cannot compute this, or None."""
    if softcap is not None or bias is not None:
        return "its kernels know no softcap and no bias"
    visibility = rows.visibility
    if isinstance(visibility, (Blocks, Power)):
        # queries in blocks of this size see whole blocks of keys, causally in the last: what a list of pages says
        whole = isinstance(visibility, Power) or not (visibility.sinks or visibility.offset)
        starts = [0] if rows.starts is None else rows.starts.tolist()
        if not whole or any((rows.first - start) % visibility.size for start in starts if start < rows.first):
            return "its kernels know blocks only without sinks and offset, and queries from the start of a block on"
    elif not isinstance(visibility, (Causal, Window)):
        return f"its kernels know no {type(visibility).__name__}"
    return native.absent() or native.refuses(q, k, v)


def _nothing(q: Tensor, v: Tensor) -> Result:
    """Of queries that see no key."""
    lse = q.new_full(q.shape[:3], float("-inf"), dtype=torch.promote_types(q.dtype, torch.float32))
    return v.new_zeros(*q.shape[:3], v.shape[3]), lse


def with_sinks(o: Tensor, lse: Tensor, sink_logits: Tensor | None) -> Result:
    """A sink is a part of the softmax whose values are zeros."""
    if sink_logits is None:
        return o, lse
    sums = sink_logits.to(lse.dtype)
    sums = sums.logsumexp(-1) if sums.dim() == 2 else sums
    return merge((o, lse), (torch.zeros_like(o), sums.expand(lse.shape)))


def _runs_of_heads(visibility: Visibility, heads: int) -> list[tuple[int, int, Visibility]]:
    """Heads side by side that see the same: the first, the last + 1, and what they see."""
    runs: list[tuple[int, int, Visibility]] = []
    for head in range(heads):
        seen = visibility.of_head(head, heads)
        if runs and runs[-1][2] == seen:
            runs[-1] = (runs[-1][0], head + 1, seen)
        else:
            runs.append((head, head + 1, seen))
    return runs or [(0, 0, visibility)]


def _heads(x: Tensor | None, low: int, high: int, axis: int) -> Tensor | None:
    return x if x is None or x.shape[axis] == 1 else x.narrow(axis, low, high - low)


def _key_heads(x: Tensor, low: int, high: int, heads: int) -> Tensor:
    """The key heads ``(B, S, N, D)`` that query heads ``low`` to ``high - 1`` read."""
    if (low, high) == (0, heads):
        return x
    group = heads // x.shape[2]
    if low % group == 0 and high % group == 0:
        return x[:, :, low // group : high // group]
    return x[:, :, torch.arange(low, high, device=x.device) // group]
