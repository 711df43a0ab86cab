"""Gated DeltaNet against its recurrence, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, plain_convolution, rms, run, unit
from plait.mixers.gated_deltanet import GatedDeltaNet


def naive(m: GatedDeltaNet, x: Tensor, H: int, HV: int, *, double_beta: bool = False) -> Tensor:
    """The layer as a loop over tokens: decay the state, compare with what it holds, write the difference."""
    q, k, v = (
        F.silu(plain_convolution(x @ getattr(m, f"{n}_proj").weight.T, getattr(m, f"{n}_conv1d").weight)) for n in "qkv"
    )
    q, k, v = unit(heads(q, H)), unit(heads(k, H)), heads(v, HV)
    q, k = (y.repeat_interleave(HV // H, dim=2) for y in (q, k))
    beta = torch.sigmoid(x @ m.b_proj.weight.T) * (2 if double_beta else 1)
    g = -m.A_log.exp() * F.softplus(x @ m.a_proj.weight.T + m.dt_bias)
    state = x.new_zeros(x.shape[0], HV, q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(x.shape[1]):
        state = g[:, t, :, None, None].exp() * state
        held = torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], beta[:, t, :, None] * (v[:, t] - held))
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]) * q.shape[-1] ** -0.5)
    activation = torch.sigmoid if m.options.output_gate_activation == "sigmoid" else F.silu
    o = rms(torch.stack(outputs, dim=1), m.o_norm.weight) * activation(heads(x @ m.g_proj.weight.T, HV))
    return o.flatten(2) @ m.o_proj.weight.T


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
@pytest.mark.parametrize("length", [1, 3, 19, 70])
def test_layer_is_its_recurrence(length: int, activation: str) -> None:
    m = make("gated_deltanet", output_gate_activation=activation)
    x = inputs(length=length)
    near(run(m, x), naive(m, x, 2, 2))


@pytest.mark.parametrize("negative", [False, True])
def test_value_head_j_reads_key_head_j_over_group(negative: bool) -> None:
    options = {"num_heads": 2, "num_v_heads": 6, "head_dim": 4, "expand_v": 0.5, "allow_neg_eigval": negative}
    m = make("gated_deltanet", **options)
    x = inputs()
    near(run(m, x), naive(m, x, 2, 6, double_beta=negative))


def test_without_decay_it_is_deltanet() -> None:
    gated = make("gated_deltanet", use_gate=False)
    delta = make("deltanet", num_heads=2)
    with torch.no_grad():
        gated.A_log.fill_(-math.inf)  # the decay is exp(0)
    delta.load_state_dict(gated.state_dict(), strict=False)
    x = inputs(length=70)
    near(run(gated, x), run(delta, x))


def test_initial_decays_cover_the_published_range() -> None:
    """A is uniform in (0, 16), the time step softplus(dt_bias) log-uniform in (0.001, 0.1)."""
    m = make("gated_deltanet", hidden=2048, num_heads=1024)
    m.init_parameters(0.02)
    A, step = m.A_log.exp(), F.softplus(m.dt_bias)
    assert 0 < A.min() < 0.5
    assert 15.5 < A.max() < 16
    assert abs(A.mean() - 8) < 0.6
    assert 0.00099 < step.min() < 0.0011
    assert 0.09 < step.max() < 0.1001
    assert abs(step.log().mean() - math.log(0.01)) < 0.2
