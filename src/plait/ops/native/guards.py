"""What the operators of ``torch.ops.plait`` ask of their arguments before C reads any memory.

The public functions check what people give them (:mod:`plait.ops.checks`) and call a kernel with what fits it. The
operators can be called by name as well, with anything at all, and there these checks stand in front: each names the
argument that does not fit. Empty sizes are refused, since the public functions answer them without a kernel.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from plait.errors import OptionError
from plait.ops.checks import LARGEST_CHUNK, LARGEST_POSITION, document_borders, value_range
from plait.ops.native.library import TYPES

_FLOAT = (torch.float32,)
_INTEGERS = (torch.int64,)

#: Tokens that the chunkwise kernels treat together are multiples of this.
BLOCK = 16


class _Arguments:
    """Checks of one operator."""

    def __init__(self, op: str) -> None:
        self.op = f"torch.ops.plait.{op}"

    def sizes(self, name: str, x: Tensor, axes: str) -> tuple[int, ...]:
        """The sizes of a tensor with these axes, none of them 0."""
        if x.dim() != len(axes.split()):
            self.refuse(name, x, f"must be ({axes.replace(' ', ', ')})")
        if not x.numel():
            self.refuse(name, x, "must not be empty")
        return tuple(x.shape)

    def fits(
        self, name: str, x: Tensor | None, shape: tuple[int, ...], layout: str = "contiguous", dtypes: Any = _FLOAT
    ) -> None:
        """An argument, unless it is None, has this shape and dtype and lies in memory as its kernel reads it.

        ``layout`` is ``contiguous``, ``channels`` (the last axis side by side) or ``any``.
        """
        if x is None:
            return
        if tuple(x.shape) != shape:
            self.refuse(name, x, f"must have the shape {shape}")
        if x.dtype not in dtypes:
            self.refuse(name, x, f"must be {' or '.join(str(dtype) for dtype in dtypes)}")
        if not x.is_cpu or x.layout is not torch.strided or x.is_neg():
            self.refuse(name, x, "must be a dense tensor on a CPU")
        if (layout == "contiguous" and not x.is_contiguous()) or (
            layout == "channels" and x.shape[-1] > 1 and x.stride(-1) != 1
        ):
            self.refuse(name, x, f"must be contiguous{' in its last axis' * (layout == 'channels')}")

    def borders(self, cu_seqlens: Tensor | None, batch: int, length: int) -> int:
        """Checks the borders of packed documents; returns the number of sequences."""
        if cu_seqlens is None:
            return batch
        if not cu_seqlens.is_cpu:
            self.refuse("cu_seqlens", cu_seqlens, "must be on a CPU")
        document_borders(self.op, cu_seqlens, batch, length)
        return len(cu_seqlens) - 1

    def number(self, name: str, x: int, least: int, most: int) -> None:
        if not least <= x <= most:
            raise OptionError(f"{self.op}: {name}={x} must lie in {least}..{most}.")

    def refuse(self, name: str, x: Tensor, what: str) -> None:
        raise OptionError(f"{self.op}: {name} {tuple(x.shape)} {x.dtype} on {x.device} {what}.")


def scan(log_a: Tensor, u: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> None:
    _scan(_Arguments("scan"), u, {"log_a": log_a, "u": u}, state, cu_seqlens)


def scan_backward(d_h: Tensor, log_a: Tensor, h: Tensor, state: Tensor | None, cu_seqlens: Tensor | None) -> None:
    check = _Arguments("scan_backward")
    _scan(check, h, {"log_a": log_a, "h": h}, state, cu_seqlens)
    check.fits("d_h", d_h, tuple(h.shape), "any")


def _scan(
    check: _Arguments, x: Tensor, rows: dict[str, Tensor], state: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    batch, length, width = check.sizes("u", x, "B T D")
    for name, y in rows.items():
        check.fits(name, y, (batch, length, width))
    check.fits("state", state, (check.borders(cu_seqlens, batch, length), width))


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check = _Arguments("depthwise")
    channels = _convolution(check, x, weight)[2]
    check.fits("bias", bias, (channels,))


def depthwise_backward(d_y: Tensor, x: Tensor, weight: Tensor) -> None:
    check = _Arguments("depthwise_backward")
    check.fits("d_y", d_y, _convolution(check, x, weight), "any")


def _convolution(check: _Arguments, x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """Checks input and taps; returns the shape of the output."""
    batch, slots, channels = check.sizes("x", x, "B slots C")
    taps = check.sizes("weight", weight, "taps C")[0]
    if slots < taps:
        check.refuse("x", x, f"must have at least as many slots as there are taps, {taps}")
    check.fits("x", x, (batch, slots, channels))
    check.fits("weight", weight, (taps, channels))
    return batch, slots - taps + 1, channels


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    scale: float,
    state: Tensor | None,
) -> None:
    check = _Arguments("step")
    batch, _, heads, width, values, shape = _recurrence(check, q, v, 1)
    check.fits("q", q, (batch, 1, q.shape[2], width))
    check.fits("k", k, (batch, 1, q.shape[2], width))
    check.fits("v", v, (batch, 1, heads, values))
    check.fits("beta", beta, shape)
    check.fits("log_decay", log_decay, _shape_of_decay(log_decay, shape, width))
    check.fits("state", state, (batch, heads, width, values))


def attention(
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
) -> None:
    _attention(_Arguments("attention"), q, k, v, beta, log_decay, state, cu_seqlens, size)


def attention_backward(
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
) -> None:
    check = _Arguments("attention_backward")
    rows, chunks = _attention(check, q, k, v, beta, log_decay, state, cu_seqlens, size)
    matrix = (v.shape[2], q.shape[3], v.shape[3])
    check.fits("state", state, (rows, *matrix))
    check.fits("d_o", d_o, tuple(v.shape), "any", tuple(TYPES))
    check.fits("d_last", d_last, (rows, *matrix), "any")
    check.fits("last", last, (rows, *matrix))
    check.fits("saved", saved, (chunks, *matrix))


def _attention(
    check: _Arguments,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    size: int,
) -> tuple[int, int]:
    """Checks what forward and backward share; returns the number of sequences and of chunks."""
    check.number("size", size, BLOCK, LARGEST_CHUNK)
    if size % BLOCK:
        raise OptionError(f"{check.op}: size={size} must be a multiple of {BLOCK}.")
    batch, length, heads, width, values, shape = _recurrence(check, q, v, None)
    for name, x in (("q", q), ("k", k)):
        check.fits(name, x, (batch, length, q.shape[2], width), "channels", tuple(TYPES))
    check.fits("v", v, (batch, length, heads, values), "channels", tuple(TYPES))
    check.fits("beta", beta, shape, "any")
    decay = _shape_of_decay(log_decay, shape, width)
    check.fits("log_decay", log_decay, decay, "channels" if len(decay) == 4 else "any")
    rows = check.borders(cu_seqlens, batch, length)
    check.fits("state", state, (rows, heads, width, values), "any")
    borders = [i * length for i in range(batch + 1)] if cu_seqlens is None else cu_seqlens.tolist()
    return rows, sum(-(-(b - a) // size) for a, b in pairwise(borders))


def _recurrence(
    check: _Arguments, q: Tensor, v: Tensor, tokens: int | None
) -> tuple[int, int, int, int, int, tuple[int, int, int]]:
    """Sizes of a recurrence: B, T, HV, K, V, and the shape of what is given for each token and value head."""
    batch, length, key_heads, width = check.sizes("q", q, "B T H K")
    if tokens is not None and length != tokens:
        check.refuse("q", q, f"must have {tokens} token")
    heads, values = check.sizes("v", v, "B T HV V")[2:]
    if heads % key_heads:
        check.refuse("v", v, f"must have a multiple of the {key_heads} heads of q")
    return batch, length, heads, width, values, (batch, length, heads)


def _shape_of_decay(log_decay: Tensor | None, shape: tuple[int, int, int], width: int) -> tuple[int, ...]:
    return (*shape, width) if log_decay is not None and log_decay.dim() == 4 else shape


def softmax_lists(
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
) -> None:
    _lists(_Arguments("softmax_lists"), q, k, v, index, counts, block, page, first, window, sinks)


def softmax_lists_backward(
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
) -> None:
    check = _Arguments("softmax_lists_backward")
    _lists(check, q, k, v, index, counts, block, page, first, window, sinks)
    queries = tuple(q.shape[:3])
    check.fits("d_o", d_o, (*queries, v.shape[3]))
    check.fits("rest", rest, queries)
    check.fits("lse", lse, queries)


def _lists(
    check: _Arguments,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    counts: Tensor,
    block: int,
    page: int,
    first: int,
    window: int,
    sinks: int,
) -> None:
    batch, heads, length, width = check.sizes("q", q, "B H T D")
    kv_heads, slots, values = check.sizes("v", v, "B G S Dv")[1:]
    if heads % kv_heads:
        check.refuse("v", v, f"must have heads that divide the {heads} of q")
    check.fits("q", q, (batch, heads, length, width), "channels")
    check.fits("k", k, (batch, kv_heads, slots, width), "channels")
    check.fits("v", v, (batch, kv_heads, slots, values), "channels")
    for name, number, least in (("block", block, 1), ("page", page, 1), ("first", first, 0), ("window", window, 0)):
        check.number(name, number, least, LARGEST_POSITION)
    check.number("sinks", sinks, 0, LARGEST_POSITION)
    check.number("first", first, 0, LARGEST_POSITION - length)
    check.number("page", page, 1, LARGEST_POSITION - slots)
    check.number("window", window, 0, LARGEST_POSITION - slots)
    if index.dim() != 4:
        check.refuse("index", index, "must be (B, X, M, K)")
    rows, owners, blocks, most = index.shape
    if rows not in (1, batch) or (owners != 1 and (not owners or heads % owners or owners % kv_heads)):
        check.refuse("index", index, f"must have B = 1 or {batch} and X = 1 or a multiple of {kv_heads} within {heads}")
    if blocks != -(-length // block):
        check.refuse("index", index, f"must have M = {-(-length // block)} blocks of queries")
    check.fits("index", index, (rows, owners, blocks, most), "any", _INTEGERS)
    check.fits("counts", counts, (rows, owners, blocks), "any", _INTEGERS)
    low, high = value_range(counts)
    if low < 0 or high > most:
        raise OptionError(f"{check.op}: counts lie in {low}..{high} and must in 0..{most}.")
    counted = torch.arange(most, device="cpu") < counts[..., None]
    low, high = value_range(index.masked_fill(~counted, 0))
    pages = -(-slots // page)
    if low < 0 or high >= pages:
        raise OptionError(f"{check.op}: index names pages {low} to {high}; the keys have {pages}, counted from 0.")
