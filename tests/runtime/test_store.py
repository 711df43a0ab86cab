"""Stores against lists: what every row and kv head holds after any mixture of additions and evictions."""

from __future__ import annotations

import pytest
import torch

from plait.errors import CacheError
from plait.policies.importance import best, last_queries, over_group
from plait.runtime.store import Store, first_true


def new(rows: int, length: int, first: int) -> torch.Tensor:
    """Keys ``(rows, 2, length, 1)`` whose numbers name row, head and position."""
    place = torch.arange(first, first + length, dtype=torch.float64)
    return (place + 100 * torch.arange(2)[:, None] + 1000 * torch.arange(rows)[:, None, None])[..., None]


def contents(store: Store) -> list[list[list[float]]]:
    assert store.keys is not None
    lengths = torch.full(store.keys.shape[:2], store.size) if store.lengths is None else store.lengths
    return [[store.keys[b, g, : int(lengths[b, g]), 0].tolist() for g in range(2)] for b in range(store.keys.shape[0])]


def named(held: list[list[list[int]]]) -> list[list[list[float]]]:
    return [[[p + 100 * g + 1000 * b for p in head] for g, head in enumerate(row)] for b, row in enumerate(held)]


def add(store: Store, past: list[int], lengths: list[int]) -> None:
    """``lengths[b]`` tokens to row b, which stands at position ``past[b]``."""
    width = max(lengths)
    keys = torch.cat([new(len(past), width, p)[b : b + 1] for b, p in enumerate(past)])
    positions = torch.tensor(past)[:, None] + torch.arange(width)
    same = len(set(lengths)) == 1
    store.add(keys, keys.clone(), positions, None if same else torch.tensor(lengths))


def test_rows_of_different_lengths() -> None:
    store = Store()
    add(store, [0, 0], [5, 2])
    add(store, [5, 2], [1, 1])
    add(store, [6, 3], [0, 3])
    assert contents(store) == named([[list(range(6))] * 2, [list(range(6))] * 2])
    add(store, [6, 6], [2, 2])
    assert contents(store) == named([[list(range(8))] * 2] * 2)
    assert store.positions is None


def test_heads_of_different_lengths() -> None:
    store = Store()
    add(store, [0, 0], [6, 6])
    index = torch.tensor([[[0, 3, 5], [1, 0, 0]], [[2, 4, 0], [0, 1, 2]]])
    valid = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 1]]]).bool()
    store.keep(index, valid)
    add(store, [6, 6], [2, 2])
    held = [[[0, 3, 5, 6, 7], [1, 6, 7]], [[2, 4, 6, 7], [0, 1, 2, 6, 7]]]
    assert contents(store) == named(held)
    places = store.view().places()
    assert [[[p for p in head if p < 2**62] for head in row] for row in places.tolist()] == held
    store.select_rows(torch.tensor([1, 1]))
    assert contents(store)[0] == contents(store)[1] == named(held)[1]
    with pytest.raises(CacheError, match="evicted"):
        store.crop(1)


@pytest.mark.parametrize("ragged", [False, True])
def test_band(ragged: bool) -> None:
    store = Store()
    add(store, [0, 0], [9, 6 if ragged else 9])
    store.keep_band(2, 3)
    rows = [[0, 1, 6, 7, 8], [0, 1, 3, 4, 5] if ragged else [0, 1, 6, 7, 8]]
    assert contents(store) == named([[row] * 2 for row in rows])
    add(store, [9, 6 if ragged else 9], [1, 1])
    store.keep_band(2, 3)
    rows = [[0, 1, 7, 8, 9], [0, 1, 4, 5, 6] if ragged else [0, 1, 7, 8, 9]]
    assert contents(store) == named([[row] * 2 for row in rows])


def test_rows_are_replaced_by_longer_and_shorter_ones() -> None:
    store, other = Store(), Store()
    add(store, [0, 0, 0], [4, 4, 4])
    store.keep(torch.tensor([[[0, 1]] * 2] * 3))
    add(other, [0, 0], [5, 3])
    store.replace_rows(torch.tensor([2, 0]), other)
    numbers = [[[1000, 1001, 1002], [1100, 1101, 1102]], [[1000, 1001], [1100, 1101]], [[0, 1, 2, 3, 4]]]
    found = contents(store)
    assert found[0] == numbers[0]
    assert found[1] == numbers[1]
    assert found[2][0] == numbers[2][0]


def test_crop_and_bytes() -> None:
    store = Store(extras=("score",))
    keys = new(1, 5, 0)
    store.add(keys, keys, torch.arange(5)[None], None, score=keys[..., 0])
    assert store.bytes() == 3 * 2 * 5 * 8
    store.crop(2)
    assert contents(store) == named([[[0, 1, 2]] * 2])
    assert store.score.shape == (1, 2, 3)  # type: ignore[attr-defined]
    twin = store.copy()
    add_ = twin.copy()
    assert isinstance(add_, Store)
    add_.keep_band(0, 1)
    assert contents(store) == named([[[0, 1, 2]] * 2])
    with pytest.raises(CacheError, match="holds 3"):
        store.crop(4)
    store.clear()
    assert store.size == 0


def test_best_and_first_true() -> None:
    scores = torch.tensor([[3.0, 1.0, float("-inf"), 2.0], [float("-inf"), 5.0, float("-inf"), float("-inf")]])
    index, valid = best(scores, 2)
    assert valid is not None
    assert [i[v].tolist() for i, v in zip(index, valid, strict=True)] == [[0, 3], [1]]
    index, valid = best(scores, 3, torch.tensor([1, 1]))
    assert (index.tolist(), valid) == ([[0], [1]], None)
    index, valid = first_true(torch.tensor([[False, True, True]]), 3)
    assert (index.tolist(), valid) == ([[1, 2]], None)


def test_over_group_is_by_kv_head() -> None:
    weights = torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])
    assert over_group(weights, 2, "mean").flatten().tolist() == [2, 6]
    assert over_group(weights, 2, "amax").flatten().tolist() == [3, 7]


def test_last_queries_of_ragged_rows() -> None:
    from runtime.test_products import SCORINGS, call_of

    call = call_of(SCORINGS["plain"], past=[3, 3], length=5, lengths=[5, 2])
    q, positions, real = last_queries(call, 3)
    assert real is not None
    assert real.tolist() == [[True, True, True], [False, True, True]]
    assert positions[real].tolist() == [5, 6, 7, 3, 4]
    assert torch.equal(q[1, :, 1:], call.q[1, :, :2])
