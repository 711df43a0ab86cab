"""Softmax attention against a dense formula; windows, groups, positions and the pair meter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from mixers.layers import heads, inputs, make, near, run
from plait.errors import CacheError
from plait.mixers import Context
from plait.mixers import attention as module
from plait.mixers.attention import Attention, attend, visible_pairs
from plait.nn import rotary


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


def test_a_window_scores_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries meet about twice the window of keys each."""
    scored = 0
    sound = F.scaled_dot_product_attention

    def counting(q: Tensor, k: Tensor, *rest: Tensor, **options: object) -> Tensor:
        nonlocal scored
        scored += q.shape[-2] * k.shape[-2]
        return sound(q, k, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    run(make("attention", window=64), inputs(batch=1, length=4096))
    assert scored < 4096 * 2 * 64


@pytest.mark.parametrize("padding", [None, [0, 3]])
def test_long_masks_are_cut_into_blocks(padding: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(2, length, 2, 4, dtype=torch.float64) for length in (150, 200, 200))
    start = None if padding is None else torch.tensor(padding)
    whole = attend(q, k, v, start, None)
    monkeypatch.setattr(module, "MASK_ENTRIES", 1)
    near(attend(q, k, v, start, None), whole, 1e-14)


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
    tables = dict(context.shared)
    second(x, context.for_layer(None))
    assert len(tables) == 1
    assert context.shared == tables


def test_effective_weights_are_the_softmax() -> None:
    m = make("attention", num_heads=4, num_kv_heads=2, window=5)
    x = inputs()
    weights = m.effective_weights(x)
    v = heads(m.v_proj(x), 2).repeat_interleave(2, dim=2)
    near(m.o_proj(torch.einsum("bhts,bshd->bthd", weights, v).flatten(2)), run(m, x))
    near(weights.sum(-1), torch.ones(2, 4, 19, dtype=x.dtype))
    assert int((weights[0, 0] > 0).sum()) == visible_pairs(19, 19, 5)


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


def test_a_padding_slot_sees_itself() -> None:
    """A row of the mask without any key would be NaN in a plain softmax."""
    m, x = make("attention", window=3), inputs()
    weights = m.effective_weights(x, Context.plain(x, padding=torch.tensor([0, 6])))
    near(weights[1, :, :6, :6], torch.eye(6, dtype=x.dtype).expand(2, 6, 6))
    near(weights[1, :, 6:, :6], torch.zeros(2, 13, 6, dtype=x.dtype))
