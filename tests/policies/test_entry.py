"""A model is served, or refused on entry with the reason: no policy is a silent no-op, and none fails later."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import plait
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.runtime.transformers_hooks import NAME, _attached
from policies.tiny_models import SIZES, decoder, generate, left_padded, tokens

MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "head_dim": 8,
    "n_routed_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 7}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}

#: Families that are served: what they need beyond the common sizes, and the layers that a policy acts on.
SERVED: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "apertus": ({}, (0, 1)),
    "arcee": ({}, (0, 1)),
    "biogpt": ({}, (0, 1)),
    "bitnet": ({}, (0, 1)),
    "cohere": ({}, (0, 1)),
    "cohere2": (WINDOWS, (1,)),
    "deepseek_v3": (MLA, (0, 1)),
    "exaone4": (WINDOWS, (1,)),
    "ernie4_5": ({}, (0, 1)),
    "gemma": ({"head_dim": 8}, (0, 1)),
    "gemma2": ({"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0}, (1,)),
    "gemma3_text": ({"head_dim": 8, **WINDOWS}, (1,)),
    "glm": ({"head_dim": 8}, (0, 1)),
    "gpt2": (GPT, (0, 1)),
    "gpt_bigcode": (GPT, (0, 1)),
    "gpt_neox": ({}, (0, 1)),
    "gptj": ({**GPT, "rotary_dim": 4}, (0, 1)),
    "gpt_oss": ({"head_dim": 8, **WINDOWS, **EXPERTS}, (1,)),
    "granite": ({}, (0, 1)),
    "helium": ({"head_dim": 8}, (0, 1)),
    "llama": ({}, (0, 1)),
    "mistral": ({"sliding_window": None}, (0, 1)),
    "mixtral": ({"sliding_window": None, **EXPERTS}, (0, 1)),
    "nemotron": ({}, (0, 1)),
    "olmo": ({}, (0, 1)),
    "olmo3": (WINDOWS, (1,)),
    "opt": ({"ffn_dim": 48, "word_embed_proj_dim": 32}, (0, 1)),
    "persimmon": ({}, (0, 1)),
    "phi": ({}, (0, 1)),
    "qwen2_moe": ({"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, **EXPERTS}, (0, 1)),
    "qwen3": ({"head_dim": 8}, (0, 1)),
    "smollm3": ({}, (0, 1)),
    "stablelm": ({}, (0, 1)),
    "starcoder2": ({"sliding_window": None}, (0, 1)),
}
#: Families that are refused: what they need, and a word of the reason.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": ({"is_decoder": False}, "not causal"),
    "bloom": ({"n_head": 4}, "own attention code"),
    "diffllama": ({}, "attends more than once"),
    "doge": ({}, "Doge"),
    "falcon": ({}, "own attention code"),
    "falcon_mamba": ({"state_size": 4}, "attend"),
    "llama4_text": ({"head_dim": 8, "intermediate_size_mlp": 48, **EXPERTS}, "chunked_attention"),
    "mpt": ({"d_model": 32, "n_heads": 4, "n_layers": 2}, "own attention code"),
    "xglm": ({"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 48}, "own attention code"),
}


def model_of(family: str, needs: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **needs})
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5)
    return model


def logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(ids).logits
    return out


@pytest.mark.parametrize("family", SERVED)
def test_a_family_that_is_served(family: str) -> None:
    """Dense attention under the runtime is the model; a narrow policy acts in the layers that the report names."""
    needs, layers = SERVED[family]
    model, ids = model_of(family, needs), tokens(1, 20)
    batch = left_padded([ids[0, :14], ids[0]])
    expected, said = logits(model, ids), generate(model, batch, new=3)
    with plait.policy(model, "dense"):
        torch.testing.assert_close(logits(model, ids), expected, rtol=1e-3, atol=2e-4)
        assert torch.equal(generate(model, batch, new=3), said)
    with plait.policy(model, "streaming", sinks=1, window=3) as applied:
        assert (logits(model, ids) - expected).abs().max() > 1e-3
        report = applied.report()
    assert report.served == layers
    for index, work in report.layers.items():
        assert (work["prefill"].pairs < work["prefill"].dense_pairs) == (index in layers)
    assert torch.equal(logits(model, ids), expected)


def refused(model: Any, reason: str, policy: str = "streaming") -> None:
    """The policy is refused on entry, and nothing of it stays."""
    with pytest.raises(OptionError, match=reason) as caught, plait.policy(model, policy):
        pass
    assert len(str(caught.value)) < 1000
    assert not _attached
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_refused(family: str) -> None:
    needs, reason = REFUSED[family]
    refused(model_of(family, needs), reason)


def test_an_encoder_decoder() -> None:
    from transformers import BartConfig, BartForConditionalGeneration

    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 61, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    refused(BartForConditionalGeneration(BartConfig(**sizes, **heads)), "encoder-decoder")


def test_cross_attention() -> None:
    refused(model_of("gpt2", {**GPT, "add_cross_attention": True}), "another sequence")


def test_layers_that_reuse_keys_of_others() -> None:
    model = decoder("llama")
    model.config.num_kv_shared_layers = 1
    refused(model, "reuse the keys")


def test_models_that_slide_in_every_layer() -> None:
    """Windows of their own leave nothing to do: said, not passed over. Dense attention and probes still run."""
    model, ids = decoder("mistral"), tokens(1, 12)
    refused(model, r"all attend within a window of their own, \[7\] tokens")
    with plait.policy(model, "dense") as applied:
        logits(model, ids)
        assert applied.report().share == 1
    plait.probe(model, "attention_sinks").run(ids)
    torch.manual_seed(0)
    mixers = {"attention": {"window": 4}}
    own = PlaitForCausalLM(PlaitConfig(vocab_size=61, hidden_size=32, layer_types=["attention", "gla"], mixers=mixers))
    with pytest.raises(OptionError, match="within a window"), plait.policy(own, "quest"):
        pass


def test_a_policy_named_for_a_layer_with_a_window() -> None:
    model = decoder("gemma3_text")
    with (
        pytest.raises(OptionError, match="layer 0 attends within a window"),
        plait.policy(model, "per_layer", layers={"0": "streaming"}),
    ):
        pass
    with plait.policy(model, "per_layer", layers={"1": "streaming"}):
        pass


def test_an_attention_implementation_of_one_layers_own() -> None:
    model = decoder("llama")
    attention = model.model.layers[1].self_attn
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation_internal = "sdpa"
    refused(model, r"layers \[1\] have configurations of their own")


def test_a_compiled_model() -> None:
    model = decoder("llama")
    refused(torch.compile(model), "compiled")
    model.forward = torch.compile(model.forward)
    refused(model, "compiled")
    model = decoder("llama")
    model.model.layers[0].compile()
    refused(model, "compiled")


def test_quantised_layers_are_served() -> None:
    model, ids = decoder("llama"), tokens(1, 14)
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    expected = logits(small, ids)
    with plait.policy(small, "dense"):
        torch.testing.assert_close(logits(small, ids), expected, rtol=1e-2, atol=1e-2)
    with plait.policy(small, "streaming", sinks=1, window=3) as applied:
        logits(small, ids)
    assert applied.report().share < 1


def test_a_model_that_cannot_read_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama")
    whole = type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("pixel_values are needed")

    monkeypatch.setattr(type(model), "forward", forward)
    refused(model, "pixel_values are needed")
    monkeypatch.setattr(type(model), "forward", whole)
    with plait.policy(model, "streaming"):
        pass


def test_an_argument_that_attention_may_need_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama")
    attention = type(model.model.layers[0].self_attn)
    whole = attention.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return whole(self, *args, **kwargs, temperature=torch.ones(4))

    monkeypatch.setattr(attention, "forward", forward)
    refused(model, "attends with temperature")


def test_training_is_entered_without_moving_the_generator() -> None:
    model = decoder("llama", attention_dropout=0.5).train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with plait.policy(model, "streaming"):
        assert torch.equal(torch.rand(1), expected)
        with pytest.raises(OptionError, match=r"model.eval\(\)"):
            model(tokens(1, 5))


def test_weights_of_attention_and_cross_attention_are_refused_in_a_call() -> None:
    model, ids = decoder("llama"), tokens(1, 5)
    with plait.policy(model, "dense"):
        with pytest.raises(OptionError, match="makes no attention weights"):
            model(ids, output_attentions=True)
        with pytest.raises(OptionError, match="cross attention"):
            model(ids, encoder_hidden_states=torch.zeros(1, 3, 32))


def test_the_name_of_the_attention_is_the_threads() -> None:
    model = decoder("llama")
    with plait.policy(model, "streaming"):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "eager"
    saved = model.config.to_dict()
    with plait.policy(model, "streaming"):
        assert model.config.to_dict() == saved
