"""Kimi Delta Attention against its recurrence, and its limits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, plain_convolution, rms, run, unit
from plait.mixers.context import Context
from plait.mixers.kda import KDA


def naive(m: KDA, x: Tensor, H: int, HV: int, *, double_beta: bool = False, bound: float | None = None) -> Tensor:
    """The layer as a loop over tokens: every channel of the state fades by its own share, then erase and write."""
    q, k, v = (
        F.silu(plain_convolution(x @ getattr(m, f"{n}_proj").weight.T, getattr(m, f"{n}_conv1d").weight)) for n in "qkv"
    )
    q, k, v = unit(heads(q, H)), unit(heads(k, H)), heads(v, HV)
    q, k = (y.repeat_interleave(HV // H, dim=2) for y in (q, k))
    beta = torch.sigmoid(x @ m.b_proj.weight.T) * (2 if double_beta else 1)
    f = heads(x @ m.f_proj[0].weight.T @ m.f_proj[1].weight.T + m.dt_bias, HV)
    rate = m.A_log.exp()[:, None]
    g = -rate * torch.log1p(f.exp()) if bound is None else bound / (1 + torch.exp(-rate * f))
    state = x.new_zeros(x.shape[0], HV, q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        state = g[:, t, :, :, None].exp() * state
        held = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - held))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * q.shape[-1] ** -0.5)
    gate = x @ m.g_proj[0].weight.T @ m.g_proj[1].weight.T
    gate = gate if m.g_proj[1].bias is None else gate + m.g_proj[1].bias
    o = rms(torch.stack(outputs, dim=1), m.o_norm.weight) * torch.sigmoid(heads(gate, HV))
    return o.flatten(2) @ m.o_proj.weight.T


@pytest.mark.parametrize("length", [1, 3, 19, 70])
def test_layer_is_its_recurrence(length: int) -> None:
    m = make("kda")
    x = inputs(length=length)
    near(run(m, x), naive(m, x, 2, 2))


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"allow_neg_eigval": True}, {"double_beta": True}),
        ({"lower_bound": -5.0}, {"bound": -5.0}),
        ({"output_gate_bias": False}, {}),
    ],
    ids=str,
)
def test_options(options: dict[str, Any], arguments: dict[str, Any]) -> None:
    """With six value heads on two key heads: value head j reads key head j // 3 and has a decay of its own."""
    m = make("kda", num_heads=2, num_v_heads=6, head_dim=4, expand_v=0.5, **options)
    x = inputs()
    near(run(m, x), naive(m, x, 2, 6, **arguments))
    assert (m.g_proj[1].bias is None) is (options.get("output_gate_bias") is False)


def test_with_one_decay_for_all_channels_it_is_gated_deltanet() -> None:
    kimi, gated = make("kda", num_heads=2), make("gated_deltanet", num_heads=2, use_gate=False)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "b_proj", "q_conv1d", "k_conv1d", "v_conv1d"):
            getattr(gated, name).weight.copy_(getattr(kimi, name).weight)
        gated.A_log.copy_(kimi.A_log)
        gated.dt_bias.copy_(torch.tensor([0.3, -0.2]))
        kimi.dt_bias.copy_(torch.tensor([0.3, -0.2]).repeat_interleave(12))
        gated.a_proj.weight.copy_(torch.randn(2, 24, generator=torch.Generator().manual_seed(0)))
        kimi.f_proj[0].weight.zero_()[:2] = gated.a_proj.weight
        kimi.f_proj[1].weight.zero_()[:12, 0] = 1  # the first head's channels read the first of the bottleneck
        kimi.f_proj[1].weight[12:, 1] = 1
    x = inputs(length=70)
    context = Context.plain(x)
    near(kimi.run(kimi.recurrence(x, context), context), gated.run(gated.recurrence(x, context), context))


def test_a_bounded_decay_stays_above_its_bound() -> None:
    """Both forms at f + dt_bias = 0: -softplus(0) = -log 2 for a rate of 1, and half of the bound."""
    bounded, free = make("kda", lower_bound=-5.0), make("kda")
    for m in (bounded, free):
        with torch.no_grad():
            m.A_log.zero_()
            m.dt_bias.zero_()
    nothing = torch.zeros(1, 1, 24, dtype=torch.float64)
    near(free.log_decay(nothing), torch.full((1, 1, 2, 12), -math.log(2), dtype=torch.float64))
    near(bounded.log_decay(nothing), torch.full((1, 1, 2, 12), -2.5, dtype=torch.float64))
    strong = bounded.log_decay(1000 * inputs())
    assert strong.min() == -5
    assert strong.max() <= 0
    assert free.log_decay(1000 * inputs()).min() < -100


def test_initial_decays_cover_the_published_range() -> None:
    """A is uniform in (1, 16) per head, the time step softplus(dt_bias) log-uniform in (0.001, 0.1) per channel."""
    m = make("kda", hidden=2048, num_heads=1024)
    m.init_parameters(0.02)
    A, step = m.A_log.exp(), F.softplus(m.dt_bias)
    assert A.shape == (1024,)
    assert step.shape == (2048,)
    assert 1 < A.min() < 1.2
    assert 15.8 < A.max() < 16
    assert abs(A.mean() - 8.5) < 0.5
    assert 0.00099 < step.min() < 0.0011
    assert 0.09 < step.max() < 0.1001
    bounded = make("kda", lower_bound=-5.0)
    bounded.init_parameters(0.02)
    assert not bounded.A_log.any()
