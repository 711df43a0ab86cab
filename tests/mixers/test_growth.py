"""Tensors that grow in place equal what concatenation makes, and are moved seldom."""

from __future__ import annotations

import torch
from torch import Tensor

from plait.mixers.growth import Growth
from plait.mixers.state import Tokens


def rows(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(2, tokens, 3, 4, generator=torch.Generator().manual_seed(seed))


def test_joined_equals_concatenated_and_moves_seldom() -> None:
    growth, x = Growth(1), rows(100)
    expected, places = x.clone(), set()
    for step in range(200):
        new = rows(1 + step % 3, step)
        before, copy = x, x.clone()
        x = growth.join(x, new)
        expected = torch.cat([expected, new], 1)
        assert torch.equal(x, expected)
        assert torch.equal(before, copy)  # what was read before is not written over
        places.add(x.data_ptr())
    assert x.shape[1] == 500 - 1
    assert len(places) < 20
    assert x.untyped_storage().nbytes() <= 1.07 * x.nbytes


def test_a_tensor_from_elsewhere_is_copied_first() -> None:
    growth = Growth(1)
    first = growth.join(rows(40), rows(1, 1))
    chosen = first.index_select(0, torch.tensor([1, 1]))
    second = growth.join(chosen, rows(1, 2))
    assert torch.equal(second, torch.cat([chosen, rows(1, 2)], 1))
    assert torch.equal(first, torch.cat([rows(40), rows(1, 1)], 1))


def test_a_window_stays_small() -> None:
    segment, everything = Tokens("keys", "values", window=33), rows(0)
    for step, tokens in enumerate([500, *[1] * 150, 40, *[1] * 10]):
        new = rows(tokens, step)
        everything = torch.cat([everything, new], 1)
        (keys, _), _ = segment.append(new, new)
        assert torch.equal(keys, everything[:, -min(everything.shape[1], 32 + tokens) :])
        assert segment.keys is not None
        assert torch.equal(segment.keys, everything[:, -32:])
        assert segment.keys.untyped_storage().nbytes() <= 48 * everything[:, :1].nbytes


def test_gradients_go_through() -> None:
    growth, old, new = Growth(1), rows(3).requires_grad_(), rows(2).requires_grad_()
    joined = growth.join(old, new)
    joined = growth.join(joined, rows(1))
    joined.square().sum().backward()
    for x in (old, new):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, 2 * x.detach())


def test_a_buffer_of_inference_mode_serves_outside_it() -> None:
    growth = Growth(1)
    with torch.inference_mode():
        x = growth.join(rows(40), rows(1, 1))
    with torch.no_grad():
        assert torch.equal(growth.join(x, rows(1, 2))[:, -1:], rows(1, 2))


def test_a_copy_has_room_of_its_own() -> None:
    segment = Tokens("keys", "values")
    for step in range(3):
        segment.append(rows(20, step), rows(20, step))
    twin = segment.copy()
    assert isinstance(twin, Tokens)
    segment.append(rows(1, 8), rows(1, 8))
    twin.append(rows(1, 9), rows(1, 9))
    assert segment.keys is not None
    assert twin.keys is not None
    assert torch.equal(segment.keys[:, -1:], rows(1, 8))
    assert torch.equal(twin.keys[:, -1:], rows(1, 9))
