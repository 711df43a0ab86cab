"""Segments of a layer's memory: alignment of rows, forgetting, copies and bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.errors import CacheError
from plait.mixers import ConvTail, LayerState, States, Tokens


def rows(*values: list[int]) -> Tensor:
    """``(B, T, 1, 1)`` from one list of numbers a row."""
    return torch.tensor(values, dtype=torch.float32)[:, :, None, None]


def numbers(x: Tensor) -> list[list[int]]:
    return x[:, :, 0, 0].int().tolist()


def test_padding_between_two_calls_moves_to_the_front() -> None:
    segment = Tokens("keys", "values")
    first = rows([0, 1, 2], [1, 2, 3])
    (keys, _), start = segment.append(first, -first, padding=torch.tensor([1, 0]))
    assert start.tolist() == [1, 0]
    second = rows([3, 4], [0, 4])
    (keys, values), start = segment.append(second, -second, padding=torch.tensor([0, 1]))
    assert start.tolist() == [1, 1]
    assert numbers(keys) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert torch.equal(values, -keys)
    third = rows([5], [5])
    (keys, _), start = segment.append(third, third, padding=None)
    assert numbers(keys) == [[0, 1, 2, 3, 4, 5]] * 2
    assert start.tolist() == [1, 1]


def test_a_window_keeps_what_the_next_query_sees() -> None:
    segment = Tokens("keys", "values", window=3)
    x = rows([0, 0, 1, 2, 3])
    (keys, _), _ = segment.append(x, x, padding=torch.tensor([2]))
    assert keys.shape[1] == 5  # the new queries may see all of them
    assert numbers(segment.keys) == [[2, 3]]
    assert segment.start.tolist() == [0]
    assert segment.keys.untyped_storage().nbytes() == 8  # nothing dropped is kept alive
    assert segment.bytes() == 16


def test_forgetting() -> None:
    segment = Tokens("keys", "values")
    x = rows([1, 2, 3, 4])
    segment.append(x, x)
    segment.crop(3)
    assert numbers(segment.keys) == [[1]]
    with pytest.raises(CacheError, match="holds 1"):
        segment.crop(2)

    window = Tokens("keys", "values", window=5)
    window.append(x, x)
    assert window.can_crop
    window.append(x, x)
    assert not window.can_crop
    with pytest.raises(CacheError, match=r"snapshot\(\)"):
        window.crop(1)


def test_a_layer_forgets_as_a_whole_or_not_at_all() -> None:
    state = LayerState({"kv": Tokens("keys", "values"), "recurrent": States()})
    x = rows([1, 2])
    state["kv"].append(x, x)
    assert not state.can_crop
    with pytest.raises(CacheError, match="States"):
        state.crop(1)
    assert numbers(state["kv"].keys) == [[1, 2]]


def test_copies_are_independent_and_rows_follow() -> None:
    state = LayerState({"recurrent": States(), "tail": ConvTail()})
    state["recurrent"].value = torch.arange(6.0).view(3, 2)
    state["tail"].value = torch.arange(3.0).view(3, 1, 1)
    twin = state.copy()
    state["recurrent"].value += 1
    assert torch.equal(twin["recurrent"].value, torch.arange(6.0).view(3, 2))
    twin.select_rows(torch.tensor([2, 2, 0, 1]))
    assert twin["recurrent"].value.tolist() == [[4, 5], [4, 5], [0, 1], [2, 3]]
    assert twin["tail"].value.flatten().tolist() == [2, 2, 0, 1]
    assert state.bytes() == 4 * 6 + 4 * 3
    state.clear()
    assert state.bytes() == 0
