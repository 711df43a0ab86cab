"""A packed store holds what a padded one holds, whatever is done to it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.ops import native
from plait.runtime import compiled
from plait.runtime.store import NEVER, RaggedStore, Store
from runtime.test_products import SCORINGS, call_of

HEADS, WIDTH = 2, 6


def tokens(rows: int, length: int, first: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(rows, HEADS, length, WIDTH, generator=generator) for _ in range(2))
    return k, v, first[:, None] + torch.arange(length)


def content(store: Store) -> list[Any]:
    keys = store.view()
    places = keys.places().expand(*keys.keys.shape[:3])
    held = []
    for b in range(places.shape[0]):
        for g in range(HEADS):
            filled = places[b, g] < NEVER
            extras = [getattr(store, name)[b, g][filled] for name in store.extras]
            held.append((places[b, g][filled].tolist(), keys.keys[b, g][filled], keys.values[b, g][filled], *extras))
    return held


def same(one: Store, other: Store) -> None:
    torch.testing.assert_close(content(one), content(other), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(12))
def test_the_same_as_a_padded_store(seed: int) -> None:
    """Random evictions, tokens one by one and several at once, padding, reordered rows, copies."""
    random, stores, rows = Random(seed), [Store(("score",)), RaggedStore(("score",))], 3
    generator = torch.Generator().manual_seed(seed)
    past, packed = torch.zeros(rows, dtype=torch.int64), False
    for step in range(40):
        what = random.choice(["one", "one", "one", "several", "padded", "evict", "rows", "copy"]) if step else "several"
        if what in ("one", "several", "padded"):
            length = 1 if what == "one" else random.randint(2, 30)
            k, v, positions = tokens(len(past), length, past, 100 * seed + step)
            lengths = torch.randint(0, length + 1, (len(past),), generator=generator) if what == "padded" else None
            for store in stores:
                store.add(k, v, positions, lengths, score=k.sum(-1))
            past = past + (length if lengths is None else lengths)
        elif what == "evict":
            size = stores[0].size
            held = stores[0].view().held()
            wanted = torch.rand(*held.shape, size, generator=generator) < torch.tensor([0.2, 0.8])[:, None]
            wanted &= torch.arange(size) < held[..., None]
            wanted[..., 0] |= True
            order = torch.argsort((~wanted).to(torch.int8), dim=-1, stable=True)
            valid = wanted.gather(-1, order)
            width = int(valid.sum(-1).max())
            for store in stores:
                store.keep(order[..., :width], valid[..., :width])
        elif what == "rows":
            index = torch.randint(0, len(past), (random.randint(1, 4),), generator=generator)
            for store in stores:
                store.select_rows(index)
            past = past[index]
        else:
            stores = [store.copy() for store in stores]  # type: ignore[misc]
        same(*stores)
        ragged: Any = stores[1]
        packed |= ragged.starts is not None
        if ragged.starts is not None:
            kept = int(stores[0].view().held().sum())
            assert ragged.bytes() == kept * (2 * WIDTH + 1) * 4 <= stores[0].bytes()
    assert packed


def test_a_copy_is_independent() -> None:
    store = RaggedStore()
    store.add(*tokens(1, 10, torch.zeros(1, dtype=torch.int64), 0), None)
    store.keep(torch.tensor([[[0, 3, 9], [2, 9, 0]]]), torch.tensor([[[True] * 3, [True, True, False]]]))
    twin: Any = store.copy()
    before = content(twin)
    store.add(*tokens(1, 1, torch.tensor([10]), 1), None)
    torch.testing.assert_close(content(twin), before, rtol=0, atol=0)
    assert int(store.view().held().sum()) == 7


@pytest.mark.skipif(native.absent() is not None, reason="the kernels are not compiled")
def test_the_kernel_reads_packed_keys_where_they_lie() -> None:
    store = RaggedStore()
    store.add(*tokens(1, 40, torch.zeros(1, dtype=torch.int64), 0), None)
    index = torch.stack([torch.arange(30), torch.arange(30)])[None]
    store.keep(index, torch.stack([torch.arange(30) < 30, torch.arange(30) < 9])[None])
    store.add(*tokens(1, 3, torch.tensor([40]), 1), None)
    call = call_of(SCORINGS["plain"], past=[40], length=3)
    call = type(call)(**{**vars(call), "q": call.q.float()})
    packed = store.stored()
    assert packed.starts is not None
    assert compiled.serves(call, packed)
    found, _ = compiled.held(call, packed, None, 0)
    expected, _ = compiled.held(call, packed.padded(), None, 0)
    torch.testing.assert_close(found, expected)
    assert found.abs().sum() > 0
