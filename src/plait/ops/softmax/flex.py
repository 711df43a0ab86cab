"""Softmax attention through FlexAttention's kernels, for CUDA."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from plait.ops.softmax.rows import Rows
from plait.ops.visibility import Lists


def refuses(q: Tensor) -> str | None:
    """Why the kernels cannot serve these queries, or None."""
    if not q.is_cuda:
        return f"FlexAttention's kernels need CUDA tensors and the tensors are on {q.device.type}"
    if q.dtype == torch.float64:
        return "FlexAttention's kernels compute in fp32 and the tensors are fp64"
    return None


def attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, softcap: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As :func:`plait.ops.softmax.blocks.attention`."""
    starts, borders, first, visibility = rows.starts, None, rows.first, rows.visibility
    if rows.borders is not None:
        borders = torch.tensor(rows.borders, device=q.device)
        numbers = torch.arange(k.shape[2], device=q.device)
        document = torch.searchsorted(borders, numbers, right=True) - 1
        within = numbers - borders[document]

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if borders is not None:
            return visibility.sees(within[i], within[j]) & (document[i] == document[j])
        if starts is None:
            return visibility.sees(i + first, j)
        return visibility.sees(i + first - starts[b], j - starts[b]) & (j >= starts[b]) & (i + first >= starts[b])

    return _call(q, k, v, sees, None if starts is None else q.shape[0], None, scale, softcap, bias)


def sparse(q: Tensor, k: Tensor, v: Tensor, lists: Lists, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """As :func:`plait.ops.softmax.lists.attention`."""
    batch, owners, blocks, most = lists.index.shape
    pages = -(-k.shape[2] // lists.page)
    counted = torch.arange(most, device=q.device) < lists.counts[..., None]
    chosen = torch.zeros(batch, owners, blocks, pages + 1, dtype=torch.bool, device=q.device)
    chosen.scatter_(3, lists.index.masked_fill(~counted, pages), True)
    group = q.shape[1] // owners

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return chosen[b, h // group, i // lists.block, j // lists.page] & (j <= i + lists.first)

    return _call(q, k, v, sees, batch, q.shape[1], scale, softcap, None)


def _call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sees: Any,
    rows: int | None,
    heads: int | None,
    scale: float,
    softcap: float | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    blocks = create_block_mask(sees, rows, heads, q.shape[2], k.shape[2], device=str(q.device))
    wide = None if bias is None else bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])

    def bent(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if wide is None else score + wide[b, h, i, j]

    change = None if softcap is None and bias is None else bent
    kernel = _compiled() if q.is_cuda else _plain()
    grouped, wanted = q.shape[1] != k.shape[1], AuxRequest(lse=True)
    o, aux = kernel(q, k, v, score_mod=change, block_mask=blocks, scale=scale, enable_gqa=grouped, return_aux=wanted)
    return o, aux.lse


def _plain() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@cache
def _compiled() -> Any:
    return torch.compile(_plain())
