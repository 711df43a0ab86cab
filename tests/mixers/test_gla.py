"""Gated linear attention against its recurrence, and its decay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, rms, run
from plait.mixers import Context
from plait.mixers.gla import GLA


def naive(m: GLA, x: Tensor, H: int, N: int, clamp: float | None = None) -> Tensor:
    """The layer as a loop over tokens."""
    q, k, v = (x @ getattr(m, f"{n}_proj").weight.T for n in "qkv")
    first, second = m.gk_proj
    g = F.logsigmoid(x @ first.weight.T @ second.weight.T + second.bias) / 16
    g = g if clamp is None else g.clamp(min=clamp)
    q = heads(q, H)
    k, v, g = (heads(y, N).repeat_interleave(H // N, dim=2) for y in (k, v, g))
    state = x.new_zeros(x.shape[0], H, q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        state = g[:, t, ..., None].exp() * state + k[:, t, ..., None] * v[:, t, :, None]
        outputs.append((q[:, t, :, None] @ state).squeeze(-2) * q.shape[-1] ** -0.5)
    o = torch.stack(outputs, dim=1)
    o = rms(o, m.g_norm_swish_gate.weight) * F.silu(heads(x @ m.g_proj.weight.T, H))
    return o.flatten(2) @ m.o_proj.weight.T


@pytest.mark.parametrize(("kv_heads", "clamp"), [(None, None), (2, None), (None, -0.03)])
def test_layer_is_its_recurrence(kv_heads: int | None, clamp: float | None) -> None:
    m = make("gla", num_kv_heads=kv_heads, clamp_min=clamp)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, 4, kv_heads or 4, clamp))


def test_decay_of_a_zero_logit() -> None:
    m = make("gla")
    with torch.no_grad():
        m.gk_proj[1].weight.zero_()
        m.gk_proj[1].bias.zero_()
    x = inputs()
    decay = m.recurrence(x, Context.plain(x)).log_decay.exp()
    near(decay, torch.full_like(decay, 2 ** (-1 / 16)), 1e-14)
    assert abs(2 ** (-1 / 16) - 0.9576) < 1e-4


def test_the_read_out_is_normed_per_head() -> None:
    m = make("gla", use_output_gate=False)
    with torch.no_grad():
        m.g_norm.weight.fill_(1)
        m.o_proj.weight.copy_(torch.eye(24))
    o = heads(run(m, inputs()), 4)
    near(o.square().mean(-1), torch.ones(2, 19, 4, dtype=o.dtype), 1e-2)
