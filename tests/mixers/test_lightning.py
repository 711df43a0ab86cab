"""Lightning attention against its quadratic form, and its slopes (2602.11761)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixers.layers import heads, inputs, make, near, rms, run
from plait.mixers import Context
from plait.mixers.lightning import Lightning, slopes


def turned(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding through complex numbers."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    y = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], dim=-1)


def naive(m: Lightning, x: Tensor, H: int) -> Tensor:
    """``(D^-1/2 Q K^T * e^(-s (i - j))) V``, normed over all heads, gated by a sigmoid."""
    positions = torch.arange(x.shape[1])
    q, k, v = (heads(x @ w.weight.T, H) for w in (m.q_proj, m.k_proj, m.v_proj))
    q, k = turned(rms(q, m.q_norm.weight), positions), turned(rms(k, m.k_norm.weight), positions)
    s = torch.tensor([2.0 ** (-8 * (h + 1) / H) for h in range(H)], dtype=x.dtype)
    distance = positions[:, None] - positions
    decay = torch.where(distance >= 0, torch.exp(-s[:, None, None] * distance), 0)
    o = torch.einsum("bhts,bshv->bthv", torch.einsum("bthk,bshk->bhts", q, k) * decay * q.shape[-1] ** -0.5, v)
    return (rms(o.flatten(2), m.o_norm.weight) * torch.sigmoid(x @ m.z_proj.weight.T)) @ m.o_proj.weight.T


@pytest.mark.parametrize("num_heads", [2, 4])
def test_layer_is_its_quadratic_form(num_heads: int) -> None:
    m = make("lightning", num_heads=num_heads, head_dim=6)
    x = inputs(length=70)
    near(run(m, x), naive(m, x, num_heads))


def test_slopes_of_the_release() -> None:
    """32 heads: rates from 0.841 to 0.0039, decays from 0.431 to 0.996."""
    found = slopes(32)
    assert found[0] == pytest.approx(0.841, abs=5e-4)
    assert found[-1] == 2**-8
    assert math.exp(-found[0]) == pytest.approx(0.431, abs=5e-4)
    assert math.exp(-found[-1]) == pytest.approx(0.996, abs=5e-4)
    assert sorted(found, reverse=True) == found


def test_slopes_between_powers_of_two() -> None:
    """12 heads: those of 8, then every second one of 16."""
    assert slopes(12) == [2.0**-i for i in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert slopes(1) == [2**-8]


def test_decays_are_fixed_and_the_same_in_every_layer() -> None:
    first, last = (make("lightning", num_heads=4, layer=layer) for layer in (0, 2))
    near(first.log_decay(inputs()), last.log_decay(inputs()), 0)
    assert not any("slope" in name or "decay" in name for name, _ in first.named_parameters())


def test_a_closed_gate_halves_the_output_exactly() -> None:
    m, x = make("lightning", num_heads=2), inputs()
    ungated = make("lightning", num_heads=2, use_output_gate=False)
    ungated.load_state_dict({name: value for name, value in m.state_dict().items() if name != "z_proj.weight"})
    with torch.no_grad():
        m.z_proj.weight.zero_()
    assert torch.equal(run(m, x), run(ungated, x) / 2)


def test_a_shift_of_all_positions_changes_nothing() -> None:
    m, x = make("lightning", num_heads=4), inputs()
    context = Context.plain(x)
    near(m(x, Context(context.positions + 1000)), m(x, context))
    stretched = Context(2 * context.positions)
    assert not torch.allclose(m(x, stretched), m(x, context), atol=1e-6)


def test_the_state_is_fp32_in_bf16() -> None:
    m = make("lightning", num_heads=2).bfloat16()
    state = m.new_state()
    run(m, inputs().bfloat16(), state=state)
    assert state["recurrent"].value.dtype == torch.float32


def test_the_norm_of_queries_and_keys_has_its_own_epsilon() -> None:
    x = inputs() * 1e-3
    own, model = make("lightning", qk_norm_eps=1e-2), make("lightning")
    assert (own.q_norm.eps, own.k_norm.eps, own.o_norm.eps) == (1e-2, 1e-2, 1e-6)
    assert (model.q_norm.eps, model.k_norm.eps) == (1e-6, 1e-6)
    assert not torch.allclose(run(own, x), run(model, x))
