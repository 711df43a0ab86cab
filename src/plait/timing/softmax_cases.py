"""Softmax attention of ``plait.ops`` over all keys, a window and lists of pages, against causal SDPA of torch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from plait.ops.softmax import attention, sparse_attention
from plait.ops.visibility import Causal, Lists, Window
from plait.timing.peers import Inputs, Peer, softmax_attention
from plait.timing.shapes import Shape

#: Keys of a page, and queries of a block where a block shares its list.
PAGE = 64


def over_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention over every key."""
    return attention(q, k, v, Causal())[0]


def over_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the last 256 keys."""
    return attention(q, k, v, Window(256))[0]


def over_pages(q: Tensor, k: Tensor, v: Tensor, *, lists: Lists) -> Tensor:
    """Attention over listed pages."""
    return sparse_attention(q, k, v, lists.index, lists.counts, block=lists.block, page=lists.page)[0]


def an_eighth(shape: Shape, device: str) -> Lists:
    """An eighth of the pages up to its own for each block of queries and each head, drawn at random."""
    return _drawn(shape, PAGE, shape.heads, lambda pages: (pages / 8).round().clamp(min=1), device)


def sixteen_pages(shape: Shape, device: str) -> Lists:
    """16 pages of those up to its own for each query, shared by all heads."""
    return _drawn(shape, 1, 1, lambda pages: pages.clamp(max=16), device)


def wide(peer: Peer, heads: int) -> Peer:
    """The peer with keys and values of one head copied to all: its kernels need not know groups of heads."""

    def prepare(inputs: Inputs) -> Inputs:
        q, *rest = inputs
        return q, *(x.expand(-1, -1, heads, -1).contiguous() for x in rest)

    return Peer(peer.name, peer.function, same=False, prepare=prepare)


def dense_peer(same: bool) -> Peer:
    """Causal SDPA on the same queries, keys and values."""
    peer = softmax_attention()
    return Peer(peer.name, peer.function, same=same)


def operations(pairs: int, shape: Shape, direction: str) -> float:
    """Arithmetic of the scores and of the sums over values: ``4 D`` a pair and head, thrice with the backward."""
    passes = 3 if direction == "forward+backward" else 1
    return 4.0 * passes * shape.batch * shape.heads * shape.width * pairs


def pairs_of(lists: Lists, tokens: int) -> int:
    """Visible pairs of a head, averaged over the owners of lists."""
    pages = lists.counts.float().mean((0, 1)) * lists.page * lists.block
    return int(pages.sum() - tokens * (lists.page - 1) / 2)  # the own page is seen up to the query


def _drawn(shape: Shape, block: int, owners: int, chosen: object, device: str) -> Lists:
    tokens = shape.tokens
    blocks, pages = -(-tokens // block), -(-tokens // PAGE)
    last = (torch.arange(1, blocks + 1) * block - 1).clamp(max=tokens - 1) // PAGE
    counts = chosen(last + 1.0).long()  # type: ignore[operator]
    number = torch.arange(pages)
    order = torch.rand(owners, blocks, pages, generator=torch.Generator().manual_seed(0))
    order = order.masked_fill(number > last[:, None], 2).masked_fill(number == last[:, None], -1)
    index = order.argsort(-1)[..., : int(counts.max())]
    spare = torch.arange(index.shape[2]) >= counts[:, None]
    index = index.masked_fill(spare, pages).sort(-1).values.masked_fill(spare, 0)
    index = index.expand(shape.batch, -1, -1, -1).contiguous().to(device)
    return Lists(index, counts.expand(shape.batch, owners, -1).contiguous().to(device), block, PAGE)


#: Operation -> its function and its visible pairs, for one shape and device.
PLAIN = {
    "softmax attention, causal": (over_all, Causal()),
    "softmax attention, window 256": (over_window, Window(256)),
}
LISTED = {
    "sparse_attention, 1/8 of the pages a block of 64": an_eighth,
    "sparse_attention, 16 pages a query": sixteen_pages,
}


def function_of(operation: str, shape: Shape, device: str) -> tuple[object, int]:
    """plait's function of an operation of :data:`PLAIN` or :data:`LISTED`, and its visible pairs of a head."""
    if operation in PLAIN:
        function, visibility = PLAIN[operation]
        return function, visibility.pairs([shape.tokens])
    lists = LISTED[operation](shape, device)
    return partial(over_pages, lists=lists), pairs_of(lists, shape.tokens)
