"""What the delta rule promises: exact recall, overwriting, eigenvalues, and its special cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ops.cases import assert_equal, inputs, with_gradients
from plait.ops import delta_rule, linear_attention

BACKENDS = ["reference", "torch"]


def orthonormal(count: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(width, count, generator=generator, dtype=torch.float64)).Q.T


def rows(x: Tensor) -> Tensor:
    """``(T, D)`` as one row of the batch with one head."""
    return x[None, :, None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_orthonormal_keys_are_recalled_exactly_and_overwritten(backend: str) -> None:
    keys = orthonormal(20, 24)
    values = torch.randn(40, 6, dtype=torch.float64)
    k, beta = keys.repeat(2, 1), torch.ones(1, 40, 1, dtype=torch.float64)
    _, state = delta_rule(rows(k), rows(k), rows(values), beta, scale=1.0, chunk_size=16, backend=backend)
    read = torch.einsum("kv,tk->tv", state[0, 0], keys)
    assert torch.allclose(read, values[20:], atol=1e-12)  # the second value of each key, alone
    _, summed = linear_attention(rows(k), rows(k), rows(values), scale=1.0, chunk_size=16, backend=backend)
    assert torch.allclose(torch.einsum("kv,tk->tv", summed[0, 0], keys), values[:20] + values[20:], atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_written_value_is_read_by_its_own_token(backend: str) -> None:
    given = inputs(70, H=2, HV=2, decay="channel", delta=True)
    given.beta = torch.ones_like(given.beta)
    o, _ = delta_rule(given.k, given.k, given.v, given.beta, given.log_decay, scale=1.0, backend=backend)
    assert torch.allclose(o, given.v, atol=1e-10)  # beta = 1: whatever was there, k_t now returns v_t


@pytest.mark.parametrize("backend", BACKENDS)
def test_eigenvalues_of_one_step(backend: str) -> None:
    key = orthonormal(1, 5)
    identity = torch.eye(5, dtype=torch.float64)[None, None]
    for beta in (0.0, 0.3, 1.0, 1.7, 2.0):
        strength = torch.full((1, 1, 1), beta, dtype=torch.float64)
        _, state = delta_rule(
            rows(key), rows(key), rows(torch.zeros_like(key)), strength, state=identity, backend=backend
        )
        found = torch.linalg.eigvalsh(state[0, 0])
        assert torch.allclose(found, torch.tensor([1 - beta, 1, 1, 1, 1], dtype=torch.float64).sort().values)


@pytest.mark.parametrize("backend", BACKENDS)
def test_beta_two_flips_the_component_along_the_key(backend: str) -> None:
    key = orthonormal(1, 4)
    steps = 33
    k = key.expand(steps, 4)
    start = torch.outer(key[0], torch.tensor([1.0, -2.0], dtype=torch.float64))[None, None]
    o, state = delta_rule(
        rows(k),
        rows(k),
        torch.zeros(1, steps, 1, 2, dtype=torch.float64),
        torch.full((1, steps, 1), 2.0, dtype=torch.float64),
        scale=1.0,
        state=start,
        chunk_size=16,
        backend=backend,
    )
    sign = torch.tensor([(-1.0) ** (t + 1) for t in range(steps)], dtype=torch.float64)
    assert torch.allclose(o[0, :, 0], sign[:, None] * torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert torch.allclose(state, -start)


@pytest.mark.parametrize("T", [1, 17, 64, 130])
def test_zero_decay_is_the_plain_rule(T: int) -> None:
    plain = inputs(T, decay="none", delta=True)
    expected = with_gradients(plain)
    for decay in ("constant", "head", "channel"):
        gated = inputs(T, decay=decay, delta=True)
        gated.q, gated.k, gated.v, gated.beta, gated.state = plain.q, plain.k, plain.v, plain.beta, plain.state
        gated.log_decay = torch.zeros_like(gated.log_decay)
        assert_equal(with_gradients(gated)[:6], expected[:6], 1e-12, decay)


@pytest.mark.parametrize("T", [1, 17, 64, 130])
def test_equal_channels_are_one_decay_per_head(T: int) -> None:
    head = inputs(T, decay="head", delta=True)
    assert head.log_decay is not None
    channels = inputs(T, decay="channel", delta=True)
    channels.q, channels.k, channels.v, channels.beta, channels.state = head.q, head.k, head.v, head.beta, head.state
    channels.log_decay = head.log_decay[..., None].expand(-1, -1, -1, 5)
    for backend, tolerance in (("reference", 0.0), ("torch", 1e-12)):
        found, expected = with_gradients(channels, backend=backend), with_gradients(head, backend=backend)
        assert_equal(found[:2], expected[:2], tolerance)
        found[6] = found[6].sum(-1)
        assert_equal(found, expected, 1e-12)


def test_decay_comes_before_the_correction() -> None:
    key = orthonormal(1, 3)
    state = torch.outer(key[0], torch.tensor([8.0], dtype=torch.float64))[None, None]
    half = torch.full((1, 1, 1), 0.5, dtype=torch.float64)
    for backend in BACKENDS:
        value = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
        o, _ = delta_rule(rows(key), rows(key), value, half, half.log(), scale=1.0, state=state, backend=backend)
        assert torch.allclose(o, torch.tensor(4 + 0.5 * (2.0 - 4), dtype=torch.float64))  # not 4 + 0.5 (2 - 8)


def test_scale_multiplies_queries_only() -> None:
    given = inputs(20, K=4, delta=True)
    o, state = given.run()
    scaled, same = given.run(scale=1.0)
    assert torch.allclose(o * 2, scaled)
    assert torch.equal(state, same)
