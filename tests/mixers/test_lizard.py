"""Lizard against its formulas, branch by branch (2507.09025, section 3)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mixers.layers import heads, inputs, make, near, run
from plait.mixers import Context
from plait.mixers.lizard import Lizard, features
from plait.ops.softmax import attention_output
from plait.ops.visibility import Window


def parts(m: Lizard, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``(B, H, T, D)``, keys and values repeated for their query heads."""
    H, N, _ = m.sizes
    q, k, v = (heads(x @ w.weight.T, n) for w, n in ((m.q_proj, H), (m.k_proj, N), (m.v_proj, N)))
    k, v = (y.repeat_interleave(H // N, dim=2) for y in (k, v))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def gated(m: Lizard, x: Tensor) -> Tensor:
    """``sum_t (prod gamma) phi(q) phi(k_t) v_t`` over the same without v, as one matrix."""
    q, k, v = parts(m, x)
    f = [torch.cat([(y @ w).softmax(-1), (-y @ w).softmax(-1)], -1) for y, w in ((q, m.q_map), (k, m.k_map))]
    total = F.logsigmoid(x @ m.gate + m.options.gate_bias).cumsum(-1)
    P = (f[0] @ f[1].mT) * torch.exp(total[:, None, :, None] - total[:, None, None, :]).tril()
    return (P / P.sum(-1, keepdim=True)) @ v


def anchored(m: Lizard, x: Tensor, window: int, sinks: Tensor) -> Tensor:
    """Softmax over the last ``window`` tokens with ``e^t`` added to its denominator."""
    q, k, v = parts(m, x)
    E = torch.exp(q @ k.mT / math.sqrt(q.shape[-1])).tril().triu(1 - window)
    return E @ v / (E.sum(-1, keepdim=True) + sinks.exp().sum())


@pytest.mark.parametrize("length", [5, 150])
def test_layer_is_gate_plus_alpha_times_anchor(length: int) -> None:
    m, x = make("lizard", num_heads=4, num_kv_heads=2, window=7, feature_dim=10), inputs(length=length)
    y = gated(m, x) + m.alpha * anchored(m, x, 7, m.sink_logits)
    near(run(m, x), y.transpose(1, 2).flatten(2) @ m.o_proj.weight.T)


def test_without_a_window_values_are_mixed_convexly() -> None:
    """Rows sum to one and are not negative; alpha = 0 is the same as no window."""
    m, x = make("lizard", num_heads=2, window=0), inputs(length=30)
    weights = m.effective_weights(x)
    assert (weights >= 0).all()
    near(weights.sum(-1), torch.ones_like(weights[..., 0]))
    anchorless = make("lizard", num_heads=2)
    with torch.no_grad():
        anchorless.alpha.zero_()
    near(anchorless.effective_weights(x).sum(-1), torch.ones_like(weights[..., 0]))


def test_a_gate_of_one_is_plain_hedgehog_attention() -> None:
    m, x = make("lizard", num_heads=2, window=0, gate_bias=60.0), inputs()
    with torch.no_grad():
        m.gate.zero_()
    q, k, v = parts(m, x)
    f = [torch.cat([(y @ w).softmax(-1), (-y @ w).softmax(-1)], -1) for y, w in ((q, m.q_map), (k, m.k_map))]
    P = (f[0] @ f[1].mT).tril()
    near(run(m, x), (P @ v / P.sum(-1, keepdim=True)).transpose(1, 2).flatten(2) @ m.o_proj.weight.T)


def test_no_sinks_and_a_wide_window_are_full_attention_without_positions() -> None:
    q, k, v = (inputs(length=12, seed=seed, hidden=8).view(2, 12, 2, 4) for seed in (1, 2, 3))
    full = F.scaled_dot_product_attention(*(y.transpose(1, 2) for y in (q, k, v)), is_causal=True).transpose(1, 2)
    near(attention_output(q, k, v, Window(12), sink_logits=torch.full((2, 4), -80.0)), full, 1e-12)
    near(attention_output(q, k, v, Window(12)), full, 1e-12)


def test_sinks_take_their_share_of_a_row() -> None:
    """A row sums to E / (E + sum e^t), and m sinks of log s are one of log(m s): no value stands behind them."""
    q, k = (inputs(length=9, seed=seed, hidden=4).view(2, 9, 1, 4) for seed in (1, 2))
    t = torch.tensor([0.3, -0.2, 0.1, 0.0], dtype=torch.float64)
    E = torch.exp(torch.einsum("bthd,bshd->bhts", q, k) / 2).tril().triu(-3).sum(-1).mT[..., None]
    ones = torch.ones_like(q)
    near(attention_output(q, k, ones, Window(4), sink_logits=t[None]), (E / (E + t.exp().sum())).expand_as(ones))
    four, one = (torch.full((1, m), math.log(2.8 / m), dtype=torch.float64) for m in (4, 1))
    near(*(attention_output(q, k, ones, Window(4), sink_logits=sinks) for sinks in (four, one)))


def test_gates_near_zero_over_thousands_of_tokens() -> None:
    """``exp`` of the summed log gate overflows after 128 tokens at a gate of 1/2; chunks must not."""
    m = make("lizard", num_heads=2, window=0).float()
    with torch.no_grad():
        m.gate.zero_()
        assert torch.isfinite(run(m, inputs(batch=1, length=4096).float())).all()
    tiny = make("lizard", num_heads=2, window=0, gate_bias=math.log(1e-3)).float()
    x = inputs(batch=1, length=200).float()
    y = gated(tiny.double(), x.double()).transpose(1, 2).flatten(2) @ tiny.o_proj.weight.T
    near(run(tiny.float(), x).double(), y, 1e-4)


def test_the_gate_alone_knows_the_order_of_the_past() -> None:
    x = inputs(batch=1)
    order = torch.cat([torch.randperm(18, generator=torch.Generator().manual_seed(0)), torch.tensor([18])])
    m = make("lizard", num_heads=2, window=0, gate_bias=60.0)
    with torch.no_grad():
        m.gate.zero_()
    near(run(m, x[:, order])[:, -1], run(m, x)[:, -1])
    m = make("lizard", num_heads=2, window=0)
    assert not torch.allclose(run(m, x[:, order])[:, -1], run(m, x)[:, -1], atol=1e-6)


def test_positions_change_nothing() -> None:
    m, x = make("lizard", num_heads=2, window=5), inputs()
    assert torch.equal(m(x, Context(3 * Context.plain(x).positions + 7)), run(m, x))


def test_grouped_heads_equal_repeated_ones() -> None:
    few, x = make("lizard", num_heads=4, num_kv_heads=2, window=5), inputs()
    many = make("lizard", num_heads=4, window=5)
    weights = few.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = weights[name].view(2, 6, 24).repeat_interleave(2, dim=0).reshape(24, 24)
    many.load_state_dict(weights)
    near(run(many, x), run(few, x))


def test_the_window_alone_scores_pairs() -> None:
    m, x = make("lizard", num_heads=2, window=4), inputs(batch=2, length=10)
    pairs: dict[int, int] = {}
    run(m, x, pairs=pairs)
    assert pairs == {1: 2 * 2 * (1 + 2 + 3 + 4 * 7)}
    pairs = {}
    run(make("lizard", num_heads=2, window=0), x, pairs=pairs)
    assert pairs == {}


def test_features_are_two_softmaxes_or_two_exponentials() -> None:
    x = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    up, down = math.e / (math.e + 1 / math.e), 1 / math.e / (math.e + 1 / math.e)
    weight = torch.eye(2)[None]
    torch.testing.assert_close(features(x, weight, "softmax").flatten(), torch.tensor([up, down, down, up]))
    e = math.e
    torch.testing.assert_close(features(x, weight, "exp").flatten(), torch.tensor([e, 1 / e, 1 / e, e]))


def test_feature_maps_start_as_a_repeated_identity() -> None:
    m = make("lizard", num_heads=4, feature_dim=20)  # D = 6, 10 features in a half
    m.init_parameters(0.02)
    for head in m.q_map:
        assert torch.equal(head[:, :6], torch.eye(6, dtype=head.dtype))
        assert torch.equal(head[:, 6:], torch.eye(6, dtype=head.dtype)[:, :4])
    assert not m.gate.any()
    assert m.alpha.item() == 1
    assert torch.equal(m.sink_logits, torch.zeros(4, dtype=torch.float64))
