"""RetNet against its parallel form, and its fixed decays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, rms, run
from plait.mixers import Context
from plait.mixers.linear import Recurrence
from plait.mixers.retnet import RetNet


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding through complex numbers."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    y = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], dim=-1)


def naive(m: RetNet, x: Tensor, H: int, N: int) -> Tensor:
    """``o_t = K^-1/2 sum_j gamma^(t-j) <R_t q_t, R_j k_j> v_j``, as attention without softmax."""
    positions = torch.arange(x.shape[1])
    q = turned(heads(x @ m.q_proj.weight.T, H), positions)
    k = turned(heads(x @ m.k_proj.weight.T, N), positions).repeat_interleave(H // N, dim=2)
    v = heads(x @ m.v_proj.weight.T, N).repeat_interleave(H // N, dim=2)
    gamma = 1 - 2.0 ** (-5 - torch.arange(H, dtype=x.dtype))
    distance = positions[:, None] - positions
    decay = torch.where(distance >= 0, gamma[:, None, None] ** distance.clamp(min=0), 0)
    weights = torch.einsum("bthk,bshk->bhts", q, k) * decay * q.shape[-1] ** -0.5
    o = rms(torch.einsum("bhts,bshv->bthv", weights, v), m.g_norm_swish_gate.weight)
    return (o * F.silu(heads(x @ m.g_proj.weight.T, H))).flatten(2) @ m.o_proj.weight.T


@pytest.mark.parametrize(("num_heads", "kv_heads"), [(4, None), (4, 2)])
def test_layer_is_its_parallel_form(num_heads: int, kv_heads: int | None) -> None:
    m = make("retnet", num_heads=num_heads, num_kv_heads=kv_heads)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, num_heads, kv_heads or num_heads))


def test_decays_are_fixed() -> None:
    m = make("retnet", num_heads=4)
    expected = torch.tensor([1 - 2**-5, 1 - 2**-6, 1 - 2**-7, 1 - 2**-8], dtype=torch.float64)
    near(m.log_decay(inputs()).exp(), expected, 1e-15)
    assert not any("decay" in name or "gamma" in name for name, _ in m.named_parameters())


def test_a_shift_of_all_positions_changes_nothing() -> None:
    m = make("retnet", num_heads=4)
    x = inputs()
    context = Context.plain(x)
    shifted = Context(context.positions + 1000)
    near(m(x, shifted), m(x, context))
    one_row = Context(context.positions + torch.tensor([0, 1])[:, None] * torch.arange(19))
    assert not torch.allclose(m(x, one_row)[1], m(x, context)[1], atol=1e-6)


def test_without_decay_it_is_unnormalised_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    m = make("retnet", num_heads=3, rope_base=None)
    monkeypatch.setattr(m, "log_decay", lambda x: x.new_zeros(3))
    x = inputs()
    r: Recurrence = m.recurrence(x, Context.plain(x))
    scores = torch.einsum("bthk,bshk->bhts", r.q, r.k).tril() * r.q.shape[-1] ** -0.5
    near(m.effective_weights(x), scores)
