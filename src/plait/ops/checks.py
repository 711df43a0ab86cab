"""What every operation checks before any backend runs: nothing else stands between an argument and a kernel in C.

Each function takes the arguments of one operation and raises :class:`~plait.errors.OptionError`, which names the
argument, what it is and what it must be. Sizes of 0 are right: they have empty results. Decoding runs through here for
every layer and token, so shapes are asked for once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.ops.visibility import Lists, Visibility

FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTEGERS = frozenset({torch.int32, torch.int64})

#: The most tokens that a chunkwise backend treats at once: scores are quadratic in them.
LARGEST_CHUNK = 512

#: The softmax kernel keeps positions and slots in 32 bits.
LARGEST_POSITION = 2**31 - 1
_LARGEST_NUMBER = torch.finfo(torch.float32).max

Named = tuple[tuple[str, Any], ...]


def linear_scan(log_a: Any, u: Any, state: Any, cu_seqlens: Any) -> tuple[Tensor | None, bool]:
    """Checks :func:`plait.ops.linear_scan`; returns the borders in int64, and whether anything is to be computed."""
    op = "linear_scan"
    _floats(op, (("log_a", log_a), ("u", u)), (("state", state),))
    shape = u.shape
    if len(shape) != 3 or log_a.shape != shape:
        raise OptionError(f"{op}: log_a {_show(log_a)} and u {_show(u)} must both be (B, T, D).")
    batch, length, width = shape
    cu_seqlens = document_borders(op, cu_seqlens, batch, length)
    _state(op, state, (batch if cu_seqlens is None else len(cu_seqlens) - 1, width))
    return cu_seqlens, bool(batch and length and width)


def attention(
    op: str,
    q: Any,
    k: Any,
    v: Any,
    beta: Any,
    log_decay: Any,
    scale: Any,
    state: Any,
    cu_seqlens: Any,
    chunk_size: Any,
) -> tuple[float, Tensor | None, int, bool]:
    """Checks ``linear_attention`` and ``delta_rule``.

    Returns:
        The scale, the borders in int64, a chunk size of at most ``LARGEST_CHUNK``, and whether anything is to be
        computed.
    """
    required: Named = (("q", q), ("k", k), ("v", v))
    if op == "delta_rule":
        required = (*required, ("beta", beta))
    _floats(op, required, (("log_decay", log_decay), ("state", state)))
    keys, values = q.shape, v.shape
    if len(keys) != 4 or k.shape != keys:
        raise OptionError(f"{op}: q {_show(q)} and k {_show(k)} must both be (B, T, H, K).")
    batch, length, heads, width = keys
    if len(values) != 4 or values[0] != batch or values[1] != length or _no_multiple(values[2], heads):
        raise OptionError(
            f"{op}: v {_show(v)} must be (B, T, HV, V) with (B, T) = {(batch, length)} and HV a multiple of {heads}."
        )
    value_heads, value_width = values[2], values[3]
    if beta is not None and beta.shape != (batch, length, value_heads):
        raise OptionError(f"{op}: beta {_show(beta)} must be (B, T, HV) = {(batch, length, value_heads)}.")
    shapes = ((value_heads,), (batch, length, value_heads), (batch, length, value_heads, width))
    # of its rank alone: compared with a shape of another rank, a symbolic batch would be tied to a number of heads
    if log_decay is not None and log_decay.shape not in [s for s in shapes if len(s) == log_decay.dim()]:
        raise OptionError(
            f"{op}: log_decay {_show(log_decay)} must be None, (HV,), (B, T, HV) or (B, T, HV, K), "
            f"here {', '.join(map(str, shapes))}."
        )
    if type(chunk_size) is not int or chunk_size < 1:
        raise OptionError(f"{op}: chunk_size={chunk_size!r} must be a whole number of at least 1.")
    cu_seqlens = document_borders(op, cu_seqlens, batch, length)
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    _state(op, state, (rows, value_heads, width, value_width))
    if scale is None:
        scale = width**-0.5 if width else 1.0
    else:
        _scale(op, scale)
    some = bool(batch and length and value_heads and width and value_width)
    return scale, cu_seqlens, min(chunk_size, LARGEST_CHUNK), some


def causal_convolution(
    x: Any, weight: Any, bias: Any, tail: Any, padding: Any, cu_seqlens: Any, tracing: bool
) -> Tensor | None:
    """Checks ``causal_convolution``; returns the borders in int64.

    Values of padding and borders are read on a CPU only: elsewhere that would wait for the device once a layer, and no
    kernel of plait reads them there.
    """
    op = "causal_convolution"
    _floats(op, (("x", x), ("weight", weight)), (("bias", bias), ("tail", tail)))
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise OptionError(f"{op}: x {_show(x)} must be (B, T, C) and weight {_show(weight)} (C, kernel).")
    batch, length, channels = x.shape
    if weight.shape[1] < 1:
        raise OptionError(f"{op}: weight {_show(weight)} must have at least one tap (C, kernel).")
    if bias is not None and bias.shape != (channels,):
        raise OptionError(f"{op}: bias {_show(bias)} must be (C,) = {(channels,)}.")
    if padding is not None:
        if cu_seqlens is not None:
            raise OptionError(f"{op}: cu_seqlens needs one packed row (B == 1) without padding.")
        _padding(op, padding, x, tracing)
    cu_seqlens = document_borders(op, cu_seqlens, batch, length, read=x.is_cpu and not tracing)
    past = weight.shape[1] - 1
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if tail is not None and tail.shape != (rows, past, channels):
        raise OptionError(f"{op}: tail {_show(tail)} must be (rows, kernel - 1, C) = {(rows, past, channels)}.")
    return cu_seqlens


def norm(op: str, x: Any, **others: Any) -> None:
    """Checks a norm over the last axis of ``x``, with its ``weight`` and ``gate`` where it has them."""
    _floats(op, (("x", x), *others.items()), ())
    if x.dim() == 0:
        raise OptionError(f"{op}: x must be (..., D), got a single number.")
    weight, gate = others.get("weight"), others.get("gate")
    if weight is not None and weight.shape != x.shape[-1:]:
        raise OptionError(f"{op}: weight {_show(weight)} must be (D,) for x {_show(x)}.")
    if gate is not None and gate.shape != x.shape:
        raise OptionError(f"{op}: gate {_show(gate)} must have the shape of x, {_show(x)}.")


def softmax(
    q: Any, k: Any, v: Any, index: Any, counts: Any, scale: Any, first: Any, block: Any, page: Any, sums: Any
) -> bool:
    """Checks softmax attention over chosen keys; returns whether anything is to be computed."""
    op = "softmax"
    _floats(op, (("q", q), ("k", k), ("v", v)), ())
    for name, x in (("q", q), ("k", k), ("v", v)):
        if (
            x.dim() != 4
            or x.dtype != torch.float32
            or not x.is_cpu
            or (x.shape[3] > 1 and x.stride(3) != 1)
            or x.is_neg()
        ):
            raise OptionError(
                f"{op}: {name} {_show(x)} must be (B, heads, tokens, D) in fp32 on a CPU, its channels side by side; "
                f"got {x.dtype} on {x.device} with strides {tuple(x.stride())}."
            )
    batch, heads, length, width = q.shape
    kv_heads, slots = k.shape[1], k.shape[2]
    if k.shape[0] != batch or k.shape[3] != width or _no_multiple(heads, kv_heads):
        raise OptionError(f"{op}: k {_show(k)} must be (B, G, S, D) for q {_show(q)}, H a multiple of G.")
    if v.shape[:3] != k.shape[:3]:
        raise OptionError(f"{op}: v {_show(v)} must be (B, G, S, Dv) with the (B, G, S) of k {_show(k)}.")
    _scale(op, scale)
    for name, number, least in (("first", first, 0), ("block", block, 1), ("page", page, 1)):
        if type(number) is not int or number < least:
            raise OptionError(f"{op}: {name}={number!r} must be a whole number of at least {least}.")
    if first + length > LARGEST_POSITION or slots + page > LARGEST_POSITION or block > LARGEST_POSITION:
        raise OptionError(f"{op}: first, block, page and the number of keys must stay below 2**31.")
    if index is None:
        if counts is not None:
            raise OptionError(f"{op}: counts has no meaning without index.")
    else:
        if sums:
            raise OptionError(f"{op}: sums=True is for every key, without index.")
        _lists(op, index, counts, batch, heads, kv_heads, -(-length // block), -(-slots // page))
    return bool(batch and heads and length and slots and (v.shape[3] or sums))


def softmax_held(q: Any, k: Any, v: Any, held: Any, new: Any, starts: Any, scale: Any, window: Any, sinks: Any) -> int:
    """Checks softmax attention over rows and heads that hold different numbers of keys; returns the largest number."""
    op = "softmax"
    _floats(op, (("q", q), ("k", k), ("v", v)), ())
    axes = 4 if starts is None else 2
    for name, x, dimensions in (("q", q, 4), ("k", k, axes), ("v", v, axes)):
        plain = x.dtype == torch.float32 and x.is_cpu and not x.is_neg() and (x.shape[-1] <= 1 or x.stride(-1) == 1)
        if x.dim() != dimensions or not plain:
            raise OptionError(
                f"{op}: {name} {_show(x)} must have {dimensions} axes, in fp32 on a CPU, its channels side by side; "
                f"got {x.dtype} on {x.device} with strides {tuple(x.stride())}."
            )
    _scale(op, scale)
    batch, heads, length, width = q.shape
    for name, x, rows in (("held", held, 2), ("new", new, 1), ("starts", starts, 2)):
        if x is None and name == "starts":
            continue
        fits = isinstance(x, Tensor) and x.dtype == torch.int64 and x.is_cpu and x.dim() == rows
        if not fits or x.shape[0] != batch or (name == "starts" and x.shape != held.shape):
            raise OptionError(
                f"{op}: {name} must be int64 on a CPU, {'(B, G)' if rows == 2 else '(B,)'}; got {_kind(x)}."
            )
    kv_heads = held.shape[1]
    shape = k.shape[:-1] if starts is None else (batch, kv_heads)
    if _no_multiple(heads, kv_heads) or k.shape[-1] != width or v.shape[:-1] != k.shape[:-1] or shape[:2] != held.shape:
        raise OptionError(
            f"{op}: k {_show(k)} and v {_show(v)} must be (B, G, S, D), or (P, D) with starts, for q {_show(q)} and "
            f"held {_show(held)}, H a multiple of G."
        )
    for name, number in (("window", window), ("sinks", sinks)):
        if type(number) is not int or not 0 <= number <= LARGEST_POSITION:
            raise OptionError(f"{op}: {name}={number!r} must be a whole number from 0 on.")
    if not held.numel():
        return 0
    begin = torch.zeros_like(held) if starts is None else starts
    room = k.shape[2] if starts is None else k.shape[0]
    if int(begin.min()) < 0 or int((begin + held).max()) > room or int((held - new[:, None]).min()) < 0:
        raise OptionError(f"{op}: held, new and starts name keys that do not exist, among {room}.")
    if int(new.min()) < 0 or int(new.max()) > length or max(room, length) > LARGEST_POSITION:
        raise OptionError(f"{op}: new must lie in 0..{length}, and there may be 2**31 keys at most.")
    return int(held.max())


def softmax_inputs(op: str, q: Any, k: Any, v: Any, scale: Any) -> None:
    """Checks queries, keys and values of softmax attention, and the factor on the scores."""
    _queries_keys_values(op, q, k, v, ())
    if scale is not None:
        _scale(op, scale)


def softmax_attention(
    q: Any,
    k: Any,
    v: Any,
    visibility: Any,
    scale: Any,
    softcap: Any,
    bias: Any,
    sink_logits: Any,
    lengths: Any,
    cu_seqlens: Any,
    first: Any,
) -> tuple[float, Tensor | None, tuple[int, ...] | None, int]:
    """Checks softmax ``attention``.

    Returns:
        The scale, the first real slot of each row, the borders of documents, and the slot of the first query.
    """
    op = "attention"
    _queries_keys_values(op, q, k, v, (("bias", bias), ("sink_logits", sink_logits)))
    batch, length, heads, width = q.shape
    stored = k.shape[1]
    if not isinstance(visibility, Visibility) or isinstance(visibility, Lists):
        raise OptionError(
            f"{op}: visibility must be one of plait.ops.visibility such as Causal(), got {type(visibility).__name__}; "
            "lists of pages go to sparse_attention."
        )
    full = (batch, heads, length, stored)
    if bias is not None and (bias.dim() != 4 or any(x not in (1, y) for x, y in zip(bias.shape, full, strict=True))):
        raise OptionError(f"{op}: bias {_show(bias)} must be (B, H, T, S) = {full}, or 1 on any axis.")
    _sinks(op, sink_logits, heads)
    if first is None:
        first = stored - length if visibility.causal else max(0, stored - length)
    if type(first) is not int or first < 0 or (visibility.causal and first + length > stored):
        raise OptionError(f"{op}: first={first!r} must be a slot from 0 to S - T = {stored} - {length}.")
    starts = borders = None
    if cu_seqlens is not None:
        if lengths is not None or length != stored:
            raise OptionError(f"{op}: cu_seqlens needs as many keys as queries, and no lengths.")
        edges = document_borders(op, cu_seqlens, batch, length)
        borders = None if edges is None else tuple(edges.tolist())
    elif lengths is not None:
        if not isinstance(lengths, Tensor) or lengths.dtype not in INTEGERS or lengths.shape != (batch,):
            raise OptionError(f"{op}: lengths must be (B,) = {(batch,)} whole numbers, got {_kind(lengths)}.")
        low, high = value_range(lengths)
        if low < 0 or high > stored:
            raise OptionError(f"{op}: lengths must lie in 0..S = {stored}, got {low} to {high}.")
        starts = stored - lengths.to(q.device, torch.int64)
    return _softmax_scale(op, scale, softcap, width), starts, borders, first


def sparse_softmax(
    q: Any,
    k: Any,
    v: Any,
    index: Any,
    counts: Any,
    block: Any,
    page: Any,
    scale: Any,
    softcap: Any,
    sink_logits: Any,
    first: Any,
) -> tuple[float, Tensor]:
    """Checks ``sparse_attention``; returns the scale and the counts.

    What stands in the lists is read on a CPU only: elsewhere that would wait for the device once a layer.
    """
    op = "sparse_attention"
    _queries_keys_values(op, q, k, v, (("sink_logits", sink_logits),))
    batch, length, heads, width = q.shape
    stored = k.shape[1]
    _sinks(op, sink_logits, heads)
    for name, number, least in (("first", first, 0), ("block", block, 1), ("page", page, 1)):
        if type(number) is not int or number < least:
            raise OptionError(f"{op}: {name}={number!r} must be a whole number of at least {least}.")
    if first + length > stored:
        raise OptionError(f"{op}: first={first} and {length} queries reach beyond the {stored} keys.")
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.device != q.device or index.dim() != 4:
        raise OptionError(f"{op}: index must be (B, X, M, K) int64 on {q.device}, got {_kind(index)}.")
    blocks, pages = -(-length // block), -(-stored // page)
    if index.shape[0] != batch or _no_multiple(heads, index.shape[1]) or index.shape[2] != blocks:
        raise OptionError(
            f"{op}: index {_show(index)} must be (B, X, M, K): B = {batch}, X a divisor of {heads}, M = {blocks}."
        )
    if counts is None:
        counts = index.new_full(index.shape[:3], index.shape[3])
    elif (
        not isinstance(counts, Tensor)
        or counts.dtype != torch.int64
        or counts.device != q.device
        or counts.shape != index.shape[:3]
    ):
        raise OptionError(f"{op}: counts must be (B, X, M) = {tuple(index.shape[:3])} int64, got {_kind(counts)}.")
    if q.is_cpu:
        low, high = value_range(counts)
        if low < 0 or high > index.shape[3]:
            raise OptionError(f"{op}: counts lie in {low}..{high} and must in 0..{index.shape[3]}.")
        counted = torch.arange(index.shape[3]) < counts[..., None]
        low, high = value_range(index.masked_fill(~counted, 0))
        if low < 0 or high >= max(pages, 1):
            raise OptionError(f"{op}: index names pages {low} to {high}; the keys have {pages}, counted from 0.")
    return _softmax_scale(op, scale, softcap, width), counts


def _queries_keys_values(op: str, q: Any, k: Any, v: Any, optional: Named) -> None:
    _floats(op, (("q", q), ("k", k), ("v", v)), optional)
    if q.dim() != 4 or k.dim() != 4 or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise OptionError(f"{op}: q {_show(q)} must be (B, T, H, D) and k {_show(k)} (B, S, N, D).")
    if _no_multiple(q.shape[2], k.shape[2]):
        raise OptionError(f"{op}: the {k.shape[2]} heads of k must divide the {q.shape[2]} of q.")
    if v.dim() != 4 or v.shape[:3] != k.shape[:3]:
        raise OptionError(f"{op}: v {_show(v)} must be (B, S, N, Dv) with the (B, S, N) of k {_show(k)}.")
    if not q.dtype == k.dtype == v.dtype:
        raise OptionError(f"{op}: q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}.")


def _sinks(op: str, sink_logits: Tensor | None, heads: int) -> None:
    if sink_logits is not None and (sink_logits.dim() not in (1, 2) or sink_logits.shape[0] != heads):
        raise OptionError(f"{op}: sink_logits {_show(sink_logits)} must be (H,) or (H, m) with H = {heads}.")


def _softmax_scale(op: str, scale: Any, softcap: Any, width: int) -> float:
    if softcap is not None and (isinstance(softcap, bool) or not isinstance(softcap, (int, float)) or not softcap > 0):
        raise OptionError(f"{op}: softcap={str(softcap)[:40]} must be None or a number above 0.")
    if scale is None:
        return width**-0.5 if width else 1.0
    _scale(op, scale)
    return float(scale)


def _lists(op: str, index: Any, counts: Any, batch: int, heads: int, kv_heads: int, blocks: int, pages: int) -> None:
    """Lists of pages: whole numbers on a CPU, as many as are counted, each of them a page that holds keys."""
    for name, x in (("index", index), ("counts", counts)):
        if x is None and name == "counts":
            continue
        if not isinstance(x, Tensor) or x.dtype != torch.int64 or not x.is_cpu or x.layout is not torch.strided:
            raise OptionError(f"{op}: {name} must be an int64 tensor on a CPU, got {_kind(x)}.")
    flat = index.dim() == 1
    lists = counts if flat else index
    if lists is None or lists.dim() != (3 if flat else 4):
        raise OptionError(
            f"{op}: index {_show(index)} must be (B, X, M, K), or all pages in one row with counts (B, X, M)."
        )
    owners = lists.shape[1]
    name = "counts" if flat else "index"
    if lists.shape[0] != batch or lists.shape[2] != blocks or owners not in (heads, kv_heads):
        raise OptionError(
            f"{op}: {name} {_show(lists)} must begin with (B, X, M) = ({batch}, {kv_heads} or {heads}, {blocks})."
        )
    if counts is not None:
        if not flat and counts.shape != index.shape[:3]:
            raise OptionError(f"{op}: counts {_show(counts)} must be (B, X, M) = {tuple(index.shape[:3])}.")
        most = index.shape[-1]
        low, high = value_range(counts)
        if low < 0 or high > most:
            raise OptionError(f"{op}: counts lie in {low}..{high} and must in 0..{most}, the pages that index holds.")
        if flat and int(counts.sum()) != most:
            raise OptionError(f"{op}: index holds {most} pages and counts add up to {int(counts.sum())}.")
        if not flat:
            index = index[torch.arange(most) < counts[..., None]]  # what is not counted is not read
    low, high = value_range(index)
    if low < 0 or high >= max(pages, 1):
        raise OptionError(f"{op}: index names pages {low} to {high}; the keys have {pages}, counted from 0.")


def _floats(op: str, required: Named, optional: Named) -> None:
    """Dense tensors of real numbers on one device."""
    device, first = None, ""
    for name, x in (*required, *((name, x) for name, x in optional if x is not None)):
        if not isinstance(x, Tensor) or x.dtype not in FLOATS or x.layout is not torch.strided:
            raise OptionError(f"{op}: {name} must be a dense tensor of fp16, bf16, fp32 or fp64, got {_kind(x)}.")
        if device is None:
            device, first = x.device, name
        elif x.device != device:
            raise OptionError(f"{op}: {first} is on {device} and {name} on {x.device}; move them to one device.")


def document_borders(op: str, cu_seqlens: Any, batch: int, length: int, read: bool = True) -> Tensor | None:
    """Borders of packed documents in int64."""
    if cu_seqlens is None:
        return None
    if (
        not isinstance(cu_seqlens, Tensor)
        or cu_seqlens.dtype not in INTEGERS
        or cu_seqlens.layout is not torch.strided
        or cu_seqlens.dim() != 1
        or not len(cu_seqlens)
    ):
        raise OptionError(f"{op}: cu_seqlens must be borders (N + 1,) in int64, got {_kind(cu_seqlens)}.")
    if batch != 1:
        raise OptionError(f"{op}: cu_seqlens needs one packed row (B == 1), got B = {batch}.")
    if read:
        borders = cu_seqlens.tolist()
        if borders[0] != 0 or borders[-1] != length or any(a >= b for a, b in pairwise(borders)):
            shown = str(borders) if len(borders) <= 20 else f"{len(borders)} numbers from {borders[0]} to {borders[-1]}"
            raise OptionError(
                f"{op}: cu_seqlens must rise strictly from 0 to T = {length} (no empty document), got {shown}."
            )
    return cu_seqlens.long()


def _padding(op: str, padding: Any, x: Tensor, tracing: bool) -> None:
    if (
        not isinstance(padding, Tensor)
        or padding.dtype not in INTEGERS
        or padding.shape != x.shape[:1]
        or padding.device != x.device
    ):
        raise OptionError(
            f"{op}: padding must be (B,) = {tuple(x.shape[:1])} whole numbers on {x.device}, got {_kind(padding)}."
        )
    if not x.is_cpu or tracing:
        return
    low, high = value_range(padding)
    if low < 0 or high > x.shape[1]:
        raise OptionError(f"{op}: padding must lie in 0..T = {x.shape[1]}, got {low} to {high}.")


def _state(op: str, state: Tensor | None, shape: tuple[int, ...]) -> None:
    if state is not None and state.shape != shape:
        raise OptionError(f"{op}: state {_show(state)} must be {shape}.")


def _scale(op: str, scale: Any) -> None:
    if isinstance(scale, (torch.SymFloat, torch.SymInt)):
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not abs(scale) <= _LARGEST_NUMBER:
        raise OptionError(f"{op}: scale={str(scale)[:40]} must be a finite number in the range of fp32.")


def value_range(x: Tensor) -> tuple[int, int]:
    """Least and largest of whole numbers; zeros where there are none."""
    if not x.numel():
        return 0, 0
    low, high = x.aminmax()
    return int(low), int(high)


def _no_multiple(heads: int, of: int) -> bool:
    return bool(heads % of) if of else bool(heads)


def _show(x: Tensor) -> str:
    return str(tuple(x.shape))


def _kind(x: Any) -> str:
    if not isinstance(x, Tensor):
        return f"{type(x).__name__}"
    layout = "" if x.layout is torch.strided else f" {x.layout}"
    return f"{tuple(x.shape)} {x.dtype}{layout} on {x.device}"
