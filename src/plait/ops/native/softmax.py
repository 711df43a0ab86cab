"""Softmax attention over chosen keys through the compiled kernel, forward only.

A gathered product reads each key twice and writes it once before it multiplies; the kernel multiplies keys where they
lie.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plait.ops import checks
from plait.ops.dispatch import resolve
from plait.ops.native.kernel import tracing
from plait.ops.native.library import Softmax, call, pointer
from plait.ops.native.status import refuses


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
    batch, heads, length, width = q.shape
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
    arguments = Softmax(
        **{name: pointer(x) for name, x in {"q": q, "k": k, "v": v, "o": o, "sums": received}.items()},
        **{name: pointer(x) for name, x in {"index": index, "begin": begin, "end": end}.items()},
        **{f"{n}_{axis}": x.stride(i) for n, x in zip("qkv", (q, k, v), strict=True) for i, axis in _AXES},
        B=batch,
        H=heads,
        X=owners,
        G=k.shape[1],
        T=length,
        S=k.shape[2],
        D=width,
        DV=v.shape[3],
        block=block,
        page=page,
        first=first,
        scale=scale,
    )
    call("softmax", arguments)
    return o, received


def _rows(index: Tensor) -> Tensor:
    """Where the list of each block begins ``(B X M,)``."""
    count, size = index.shape[:3].numel(), index.shape[3]
    return torch.arange(count, device="cpu") * size


_AXES = ((0, "batch"), (1, "head"), (2, "token"))
