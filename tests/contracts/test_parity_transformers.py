"""Gated DeltaNet equals the independent layers of transformers, weight for weight."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from plait.mixers.base import Dims
from plait.mixers.context import Context
from plait.mixers.gated_deltanet import GatedDeltaNet

HIDDEN, KEY_HEADS, VALUE_HEADS, HEAD = 48, 2, 4, 12


def ours(layer: torch.nn.Module) -> GatedDeltaNet:
    options = GatedDeltaNet.Options.parse(
        "gated_deltanet", {"num_heads": KEY_HEADS, "num_v_heads": VALUE_HEADS, "head_dim": HEAD, "expand_v": 1.0}
    )
    mixer = GatedDeltaNet(Dims(HIDDEN, 2, 1e-6), options, 0)
    with torch.no_grad():
        mixer.A_log.copy_(layer.A_log)
        mixer.dt_bias.copy_(layer.dt_bias)
        sizes = [KEY_HEADS * HEAD, KEY_HEADS * HEAD, VALUE_HEADS * HEAD]
        for name, weight in zip("qkv", layer.conv1d.weight.split(sizes), strict=True):
            getattr(mixer, f"{name}_conv1d").weight.copy_(weight)
    return mixer


def randomise(layer: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer


def pure_torch(monkeypatch: pytest.MonkeyPatch, module: object) -> None:
    """Hub kernels of transformers, if any, are unwrapped to its own PyTorch code."""
    for name in ("torch_chunk_gated_delta_rule", "causal_conv1d_fn"):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))


@pytest.mark.parametrize("length", [1, 5, 64, 131])
def test_qwen3_next(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3_next import modeling_qwen3_next as theirs

    pure_torch(monkeypatch, theirs)
    config = theirs.Qwen3NextConfig(
        hidden_size=HIDDEN,
        linear_num_key_heads=KEY_HEADS,
        linear_num_value_heads=VALUE_HEADS,
        linear_key_head_dim=HEAD,
        linear_value_head_dim=HEAD,
        num_hidden_layers=4,
    )
    layer = randomise(theirs.Qwen3NextGatedDeltaNet(config, 0))
    mixer = ours(layer)

    def rows(weight: Tensor, sizes: list[int]) -> list[Tensor]:
        """Split each key head's group of rows and stack the groups again by part."""
        grouped = weight.view(KEY_HEADS, sum(sizes), HIDDEN).split(sizes, dim=1)
        return [part.reshape(-1, HIDDEN) for part in grouped]

    group = VALUE_HEADS // KEY_HEADS
    with torch.no_grad():
        q, k, v, z = rows(layer.in_proj_qkvz.weight, [HEAD, HEAD, group * HEAD, group * HEAD])
        b, a = rows(layer.in_proj_ba.weight, [group, group])
        for name, weight in {"q": q, "k": k, "v": v, "g": z, "b": b, "a": a}.items():
            getattr(mixer, f"{name}_proj").weight.copy_(weight)
        mixer.o_norm.weight.copy_(layer.norm.weight)
        mixer.o_proj.weight.copy_(layer.out_proj.weight)
    x = torch.randn(2, length, HIDDEN, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(mixer(x, Context.plain(x)), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [5, 131])
def test_olmo_hybrid(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.olmo_hybrid import modeling_olmo_hybrid as theirs

    pure_torch(monkeypatch, theirs)
    config = theirs.OlmoHybridConfig(
        hidden_size=HIDDEN,
        linear_num_key_heads=KEY_HEADS,
        linear_num_value_heads=VALUE_HEADS,
        linear_key_head_dim=HEAD,
        linear_value_head_dim=HEAD,
        linear_allow_neg_eigval=False,
        num_hidden_layers=4,
    )
    layer = randomise(theirs.OlmoHybridGatedDeltaNet(config, 0))
    mixer = ours(layer)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "a_proj", "b_proj", "g_proj", "o_proj", "o_norm"):
            getattr(mixer, name).weight.copy_(getattr(layer, name).weight)
    mixer.o_norm.eps = 1e-5  # that model's layer keeps its own epsilon
    x = torch.randn(2, length, HIDDEN, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(mixer(x, Context.plain(x)), layer(x), rtol=1e-5, atol=1e-5)
