"""Attention models as Llama and Qwen3, and back: the same logits; what has no twin is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.checkpoints import from_transformers, to_transformers

IDS = torch.arange(40).view(2, 20) % 31


def plait(**attention: Any) -> PlaitForCausalLM:
    torch.manual_seed(0)
    options = {"num_heads": 4, "num_kv_heads": 2, "rope_base": 500.0, **attention}
    config = PlaitConfig(
        vocab_size=31,
        hidden_size=32,
        layer_types=["attention"] * 2,
        mixers={"attention": options},
        intermediate_size=48,
        initializer_range=0.2,
    )
    model = PlaitForCausalLM(config).eval()
    with torch.no_grad():  # norms of ones and biases of zeros would hide a swap
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("llama", {"qkv_bias": True}),
        ("llama", {"head_dim": 16}),
        ("qwen3", {"qk_norm": True}),
        ("qwen3", {"qk_norm": True, "qk_norm_eps": 1e-6}),
    ],
)
@torch.no_grad()
def test_there_and_back(kind: str, options: dict[str, Any]) -> None:
    model = plait(**options)
    twin = to_transformers(model, kind)
    assert twin.config.model_type == kind
    expected = model(IDS).logits
    torch.testing.assert_close(twin(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(from_transformers(twin)(IDS).logits, expected, rtol=1e-5, atol=1e-5)


SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "initializer_range": 0.2,
}


@pytest.mark.parametrize("tie", [False, True])
@torch.no_grad()
def test_models_of_transformers(tie: bool) -> None:
    torch.manual_seed(0)
    for theirs in (
        LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tie)),
        Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=tie)),
    ):
        ours = from_transformers(theirs.eval())
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"window": 8}, "window"),
        ({"output_gate": True}, "output_gate"),
        ({"use_short_conv": True}, "use_short_conv"),
        ({"rope_base": None}, "rope_base"),
    ],
)
def test_what_llama_cannot_express(options: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        to_transformers(plait(**options), "llama")


def test_a_hybrid_has_no_twin() -> None:
    config = PlaitConfig(vocab_size=31, hidden_size=32, layer_types=["gated_deltanet", "attention"])
    with pytest.raises(OptionError, match="layer 0 is gated_deltanet, but Llama has only attention"):
        to_transformers(PlaitForCausalLM(config), "llama")


def test_scaled_positions_are_refused() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(OptionError, match="rope_type='linear'"):
        from_transformers(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)))
