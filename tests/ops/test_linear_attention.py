"""Special cases and closed forms of linear attention."""

from __future__ import annotations

import pytest
import torch

from ops.cases import assert_equal, inputs, with_gradients
from plait.ops import linear_attention


@pytest.mark.parametrize("T", [1, 17, 64, 130])
def test_equal_channels_are_one_decay_per_head(T: int) -> None:
    head, channels = inputs(T, decay="head"), inputs(T, decay="channel")
    assert head.log_decay is not None
    channels.q, channels.k, channels.v, channels.state = head.q, head.k, head.v, head.state
    channels.log_decay = head.log_decay[..., None].expand(-1, -1, -1, 5)
    found, expected = with_gradients(channels), with_gradients(head)
    found[5] = found[5].sum(-1)
    assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("T", [1, 17, 64, 130])
def test_constant_decay_is_the_same_decay_at_every_token(T: int) -> None:
    constant = inputs(T, decay="constant")
    assert constant.log_decay is not None
    spread = inputs(T, decay="head")
    spread.q, spread.k, spread.v, spread.state = constant.q, constant.k, constant.v, constant.state
    spread.log_decay = constant.log_decay.expand(2, T, 4)
    found, expected = with_gradients(spread), with_gradients(constant)
    found[5] = found[5].sum((0, 1))
    assert_equal(found, expected, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_no_decay_is_causal_attention_without_softmax(backend: str) -> None:
    given = inputs(70, H=2, HV=2, decay="none", states=None)
    o, state = linear_attention(given.q, given.k, given.v, scale=1.0, backend=backend, chunk_size=16)
    scores = torch.einsum("bihk,bjhk->bhij", given.q, given.k).tril()
    assert torch.allclose(o, torch.einsum("bhij,bjhv->bihv", scores, given.v))
    assert torch.allclose(state, torch.einsum("bjhk,bjhv->bhkv", given.k, given.v))
    ones = linear_attention(
        given.q, given.k, given.v, torch.zeros(2, dtype=torch.float64), scale=1.0, backend=backend, chunk_size=16
    )
    assert_equal(list(ones), [o, state], 1e-12)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_constant_decay_is_the_retention_matrix(backend: str) -> None:
    given = inputs(40, H=3, HV=3, decay="none", states=None)
    gamma = 1 - 2.0 ** (-5 - torch.arange(3, dtype=torch.float64))
    o, _ = linear_attention(given.q, given.k, given.v, gamma.log(), backend=backend, chunk_size=16)
    lag = torch.arange(40)[:, None] - torch.arange(40)
    weights = torch.where(lag >= 0, gamma[:, None, None] ** lag, 0.0)
    scores = torch.einsum("bihk,bjhk->bhij", given.q, given.k) * 5**-0.5 * weights
    assert torch.allclose(o, torch.einsum("bhij,bjhv->bihv", scores, given.v), atol=1e-12)


def test_full_forgetting_leaves_the_present_token() -> None:
    given = inputs(70, H=2, HV=2, decay="channel")
    given.log_decay = torch.full_like(given.log_decay, -1e4)
    o, state = given.run(scale=1.0)
    assert torch.allclose(o, (given.q * given.k).sum(-1, keepdim=True) * given.v, atol=1e-12)
    assert torch.allclose(state, torch.einsum("bhk,bhv->bhkv", given.k[:, -1], given.v[:, -1]), atol=1e-12)
