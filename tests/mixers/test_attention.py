"""Softmax attention against a dense formula; windows, groups, positions and the pair meter."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mixers.layers import heads, inputs, make, near, run
from plait.errors import CacheError, OptionError
from plait.mixers import Context
from plait.mixers.attention import Attention
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.nn import rotary
from plait.ops.visibility import Window


def naive(
    m: Attention, x: Tensor, H: int, N: int, window: int | None = None, positions: Tensor | None = None
) -> Tensor:
    """Dense masked attention, head by head."""
    T = x.shape[1]
    q, k, v = (heads(p(x), n) for p, n in ((m.q_proj, H), (m.k_proj, N), (m.v_proj, N)))
    if hasattr(m, "q_norm"):
        q = F.rms_norm(q, q.shape[-1:], m.q_norm.weight, 1e-6)
        k = F.rms_norm(k, k.shape[-1:], m.k_norm.weight, 1e-6)
    if m.options.rope_base is not None:
        positions = torch.arange(T).expand(x.shape[:2]) if positions is None else positions
        q, k = rotary(q, positions, m.options.rope_base), rotary(k, positions, m.options.rope_base)
    outputs = []
    for h in range(H):
        scores = q[:, :, h] @ k[:, :, h * N // H].mT / q.shape[-1] ** 0.5
        distance = torch.arange(T)[:, None] - torch.arange(T)
        hidden = (distance < 0) | (distance >= (window or T))
        outputs.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[:, :, h * N // H])
    o = torch.cat(outputs, dim=-1)
    if hasattr(m, "g_proj"):
        o = o * torch.sigmoid(m.g_proj(x))
    return m.o_proj(o)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rope_base": None},
        {"rope_base": 500.0, "qkv_bias": True},
        {"qk_norm": True, "output_gate": True},
        {"num_heads": 4, "num_kv_heads": 2},
        {"num_heads": 4, "num_kv_heads": 1, "window": 3, "head_dim": 10},
        {"window": 1},
        {"window": 200},
    ],
    ids=str,
)
def test_layer_is_dense_attention(options: dict) -> None:
    m = make("attention", **options)
    H, N, _ = m.options.heads(m.dims)
    x = inputs(length=31)
    near(run(m, x), naive(m, x, H, N, m.options.window))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}, {"rope_base": None}], ids=str)
@pytest.mark.parametrize("convolved", [False, True])
def test_training_takes_the_fused_kernel(options: dict, convolved: bool) -> None:
    m = make("attention", use_short_conv=convolved, **options)
    x = inputs().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run(m, x).sum().backward()
    called = {event.key for event in profiler.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in called
    assert "aten::_scaled_dot_product_attention_math" not in called


@pytest.mark.parametrize("window", [2, 3, 64, 100, 299, 300, 301])
@pytest.mark.parametrize("padded", [False, True])
def test_window_blocks_equal_a_dense_mask(window: int, padded: bool) -> None:
    m = make("attention", window=window)
    x = inputs(length=300)
    padding = torch.tensor([0, 37]) if padded else None
    positions = (torch.arange(300) - (padding if padded else torch.zeros(2, dtype=torch.long))[:, None]).clamp(min=0)
    y = m(x, Context(positions, padding=padding))
    near(y[0], naive(m, x[:1], 2, 2, window)[0])
    real = x[1:, 37:] if padded else x[1:]
    near(y[1, 300 - real.shape[1] :], naive(m, real, 2, 2, window)[0])
    assert torch.isfinite(y).all()


def test_a_window_scores_no_square() -> None:
    """Blocks of queries meet about twice the window of keys each."""
    m, x = make("attention", window=64), inputs(batch=1, length=4096)
    H, _, D = m.sizes
    products = 4 * x.shape[1] * m.dims.hidden_size * 2 * H * D  # of the four projections
    with FlopCounterMode(display=False) as counter:
        run(m, x)
    assert 0 < counter.get_total_flops() - products < 4096 * 2 * 64 * 4 * H * D


def test_positions_are_relative() -> None:
    m = make("attention")
    x = inputs()
    context = Context.plain(x)
    near(m(x, Context(context.positions + 977)), m(x, context))
    near(m(x, Context(context.positions * 2)), naive(m, x, 2, 2, positions=context.positions * 2))
    assert not torch.allclose(m(x, Context(context.positions * 2)), m(x, context), atol=1e-6)


def test_tables_are_computed_once_for_all_layers() -> None:
    x = inputs()
    context = Context.plain(x)
    first, second = make("attention", layer=0), make("attention", layer=2)
    first(x, context)
    tables = dict(context.tables)
    second(x, context.for_layer(None))
    assert len(tables) == 1
    assert context.tables == tables


def test_effective_weights_are_the_softmax() -> None:
    m = make("attention", num_heads=4, num_kv_heads=2, window=5)
    x = inputs()
    weights = m.effective_weights(x)
    v = heads(m.v_proj(x), 2).repeat_interleave(2, dim=2)
    near(m.o_proj(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)), run(m, x))
    near(weights.sum(-1), torch.ones(2, 4, 19, dtype=x.dtype))
    assert int((weights[0, 0] > 0).sum()) == Window(5).pairs([19])


@pytest.mark.parametrize("window", [None, 1, 4, 50])
def test_the_meter_counts_visible_pairs(window: int | None) -> None:
    m = make("attention", window=window)
    x = inputs(batch=2, length=12)

    def dense(length: int, first: int = 0) -> int:
        return sum(min(i + 1, window or length) for i in range(first, length))

    meter: dict[int, int] = {}
    m(x, Context.plain(x, pairs=meter))
    assert meter == {1: 2 * 2 * dense(12)}  # two rows, two heads

    meter.clear()
    state = m.new_state()
    padding = torch.tensor([0, 5])
    m(x, Context.plain(x, pairs=meter, state=state, padding=padding))
    assert meter == {1: 2 * (dense(12) + dense(7))}
    m(x[:, :3], Context.plain(x[:, :3], pairs=meter, state=state))
    assert meter == {1: 2 * (dense(15) + dense(10))}

    meter.clear()
    m(x[:1], Context.plain(x[:1], pairs=meter, cu_seqlens=torch.tensor([0, 3, 4, 12])))
    assert meter == {1: 2 * (dense(3) + dense(1) + dense(8))}


def test_packed_documents_are_not_cached() -> None:
    m = make("attention")
    x = inputs(batch=1)
    with pytest.raises(CacheError, match="packed documents"):
        m(x, Context.plain(x, cu_seqlens=torch.tensor([0, 19]), state=m.new_state()))


def test_padding_sees_nothing_and_is_not_seen() -> None:
    m, x = make("attention", window=3), inputs()
    weights = m.effective_weights(x, Context.plain(x, padding=torch.tensor([0, 6])))
    near(weights[1, :, :6], torch.zeros(2, 6, 19, dtype=x.dtype))
    near(weights[1, :, 6:, :6], torch.zeros(2, 13, 6, dtype=x.dtype))
    near(weights[1, :, 6:].sum(-1), torch.ones(2, 13, dtype=x.dtype))


def scaled(m: Attention, x: Tensor, constant: float) -> Tensor:
    """HypeNet's layer, token by token: the query at position t times ``log(t + a) / log(a)``, no positions else."""
    q, k, v = (heads(p(x), 2) for p in (m.q_proj, m.k_proj, m.v_proj))
    outputs = []
    for t in range(x.shape[1]):
        query = q[:, t] * math.log(t + constant) / math.log(constant)
        scores = torch.einsum("bhd,bshd->bhs", query, k[:, : t + 1]) / q.shape[-1] ** 0.5
        outputs.append(torch.einsum("bhs,bshd->bhd", scores.softmax(-1), v[:, : t + 1]).flatten(1))
    return m.o_proj(torch.stack(outputs, dim=1))


HYPE = {"num_heads": 2, "rope_base": None, "logit_scaling": 7.0}


def test_scores_grow_with_the_position_outside_training() -> None:
    m, x = make("attention", **HYPE), inputs()
    near(run(m.eval(), x), scaled(m, x, 7.0))
    assert not torch.allclose(run(m, x), run(m.train(), x))
    near(run(m, x), run(make("attention", **HYPE | {"logit_scaling": None}), x))


def test_scores_count_positions_of_the_document() -> None:
    """The same alone, cached in pieces, behind padding, and behind another document."""
    m, x = make("attention", **HYPE).eval(), inputs()
    expected = run(m, x)
    state = m.new_state()
    pieces, start = [], 0
    for piece in x.split([5, 1, 1, 12], dim=1):
        positions = torch.arange(start, start + piece.shape[1]).expand(len(x), -1)
        pieces.append(m(piece, Context(positions, state=state)))
        start += piece.shape[1]
    near(torch.cat(pieces, dim=1), expected)
    padded = torch.cat([torch.ones(2, 4, x.shape[-1], dtype=x.dtype), x], dim=1)
    positions = (torch.arange(23) - 4).clamp(min=0).expand(2, -1)
    near(m(padded, Context(positions, padding=torch.tensor([4, 4])))[:, 4:], expected)
    packed = torch.cat([x[:1, :8], x[1:]], dim=1)
    positions = torch.cat([torch.arange(8), torch.arange(19)])[None]
    near(m(packed, Context(positions, cu_seqlens=torch.tensor([0, 8, 27])))[:, 8:], expected[1:])


@torch.no_grad()
def test_a_model_whose_scores_grow_with_the_position_decodes_and_pads_alike() -> None:
    torch.manual_seed(0)
    config = PlaitConfig(
        vocab_size=31, hidden_size=16, layer_types=["lightning", "attention"], mixers={"attention": HYPE}
    )
    model = PlaitForCausalLM(config).double().eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    ids = torch.arange(20).view(2, 10)
    expected = model(ids).logits
    first = model(ids[:, :6], use_cache=True)
    near(model(ids[:, 6:], past_key_values=first.past_key_values).logits, expected[:, 6:])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.ones_like(padded)
    mask[:, :3] = 0
    near(model(padded, attention_mask=mask).logits[:, 3:], expected)
    model.model.layers[1].attn.options = dataclasses.replace(model.model.layers[1].attn.options, logit_scaling=None)
    assert not torch.allclose(model(ids).logits, expected)


@pytest.mark.parametrize("constant", [1.0, 0.5, math.inf, math.nan])
def test_the_constant_of_the_scores_is_above_one(constant: float) -> None:
    with pytest.raises(OptionError, match=r"logit_scaling=.*(above 1|finite)"):
        make("attention", logit_scaling=constant)
