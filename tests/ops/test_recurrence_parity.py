"""The recurrences equal the independent PyTorch code of transformers: Qwen3-Next, Kimi Linear, Mamba-2, MiniMax."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

import pytest
import torch

from ops.cases import assert_equal, inputs
from plait import ops


def theirs(model: str, function: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """A function of a model's file, without the optional kernels around it."""
    try:
        module = import_module(f"transformers.models.{model}.modeling_{model}")
    except ModuleNotFoundError:
        pytest.skip(f"this version of transformers has no {model}")
    if not hasattr(module, function):
        pytest.skip(f"this version of transformers has no {function}")
    return inspect.unwrap(getattr(module, function))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize(
    ("model", "function", "decay"),
    [
        ("qwen3_next", "torch_chunk_gated_delta_rule", "head"),
        ("qwen3_next", "torch_recurrent_gated_delta_rule", "head"),
        ("kimi_linear", "chunk_kimi_delta_attention", "channel"),
        ("kimi_linear", "recurrent_kimi_delta_attention", "channel"),
    ],
)
@pytest.mark.parametrize("T", [1, 17, 130])
def test_delta_rule(T: int, model: str, function: str, decay: str, backend: str) -> None:
    given = inputs(T, H=2, HV=2, K=8, V=6, decay=decay, delta=True, dtype=torch.float32)
    o, state = theirs(model, function)(
        given.q,
        given.k,
        given.v,
        g=given.log_decay,
        beta=given.beta,
        initial_state=given.state,
        output_final_state=True,
    )
    assert_equal(list(given.run(backend=backend)), [o, state], 1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("T", [5, 17, 130])
def test_state_space_duality(T: int, backend: str) -> None:
    """Mamba-2: queries C, keys B, values dt x, decay A dt, no scale; groups of heads share B and C."""
    given = inputs(T, H=2, HV=4, K=8, V=6, states=None, dtype=torch.float32)
    dt = torch.rand(2, T, 4) + 0.1
    A = -torch.arange(1.0, 5.0)
    expected, state = theirs("mamba2", "mamba2_chunk_scan")(
        given.v, dt, A, given.k, given.q, chunk_size=16, return_final_states=True
    )
    o, final = ops.linear_attention(
        given.q, given.k, given.v * dt[..., None], A * dt, scale=1.0, chunk_size=32, backend=backend
    )
    assert_equal([o, final], [expected, state.mT], 1e-5)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("T", [5, 16, 70])
def test_lightning_attention(T: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniMax: a constant decay per head; the layer is called whole, our output takes the place of its core."""
    from transformers.models.minimax import modeling_minimax as minimax

    config = minimax.MiniMaxConfig(
        hidden_size=24,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=8,
        num_hidden_layers=4,
        block_size=16,
        layer_types=["linear_attention"] * 4,
    )
    layer = minimax.MiniMaxLightningAttention(config, layer_idx=1)
    x = torch.randn(2, T, 24)
    with torch.no_grad():
        expected = layer(x, None, None)[0]
        qkv = layer.act_fn(layer.qkv_proj(x)).view(2, T, 3, 24)
        q, k, v = qkv.split(8, dim=-1)
        o, _ = ops.linear_attention(q, k, v, -layer.slope_rate.flatten(), scale=1.0, chunk_size=32, backend=backend)
        found = layer.out_proj(layer.output_gate(x).sigmoid() * layer.norm(o.reshape(2, T, 24)))
    assert_equal([found], [expected], 1e-5)
