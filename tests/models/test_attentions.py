"""``output_attentions``: weights of the softmax layers, one entry for each, as transformers' hybrids give them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import plait
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM

LENGTH = 6


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(**sizes, **heads, attn_implementation="eager")
    return LlamaForCausalLM(config).double().eval()


@torch.no_grad()
def twin(llama: LlamaForCausalLM) -> PlaitForCausalLM:
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "norm_eps": llama.config.rms_norm_eps}
    mixers = {"attention": {"num_heads": 2, "num_kv_heads": 1}}
    model = PlaitForCausalLM(PlaitConfig(layer_types=["attention"] * 2, mixers=mixers, **sizes)).double().eval()
    for ours, theirs in zip(model.model.layers, llama.model.layers, strict=True):
        ours.attn.load_state_dict(theirs.self_attn.state_dict())
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
        ours.attn_norm.load_state_dict(theirs.input_layernorm.state_dict())
        ours.mlp_norm.load_state_dict(theirs.post_attention_layernorm.state_dict())
    model.model.embeddings.load_state_dict(llama.model.embed_tokens.state_dict())
    return model


@torch.no_grad()
def test_weights_are_those_of_llama(llama, tokens) -> None:
    model, ids = twin(llama), tokens(2, LENGTH)
    expected = llama(ids, output_attentions=True).attentions
    found = model(ids, output_attentions=True).attentions
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)
    assert model(ids).attentions is None


@torch.no_grad()
@pytest.mark.parametrize("softmax", ["attention", "mla"])
def test_a_hybrid_gives_one_entry_for_each_softmax_layer(build, tokens, softmax: str) -> None:
    model, ids = build("gated_deltanet", softmax, "hgrn2"), tokens(2, LENGTH)
    output = model(ids, output_attentions=True, output_hidden_states=True)
    block = model.model.layers[1]
    expected = block.attn.effective_weights(block.attn_norm(output.hidden_states[1]))
    assert len(output.attentions) == 1
    torch.testing.assert_close(output.attentions[0], expected)
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones_like(expected[..., 0]))
    assert build("hgrn2")(ids, output_attentions=True).attentions == ()
    cache = model(ids[:, :4], use_cache=True).past_key_values
    last = model(ids[:, 4:5], past_key_values=cache, output_attentions=True).attentions[0]
    torch.testing.assert_close(last, expected[:, :, 4:5, :5])
    model.config._attn_implementation = "eager"
    model.config.output_attentions = True
    torch.testing.assert_close(model(ids).attentions[0], expected)
    options = {"max_new_tokens": 2, "return_dict_in_generate": True, "do_sample": False, "pad_token_id": 0}
    made = model.generate(ids, **options, output_attentions=True).attentions
    torch.testing.assert_close(made[0][0], expected)
    assert made[1][0].shape == (2, expected.shape[1], 1, LENGTH + 1)


@torch.no_grad()
def test_weights_stand_where_the_tokens_do(build, tokens) -> None:
    """Padding at the end, documents in a row."""
    model, ids = build("gated_deltanet", "attention"), tokens(2, LENGTH)
    mask = torch.tensor([[1] * 4 + [0] * 2, [1] * LENGTH])
    whole = model(ids, attention_mask=mask, output_attentions=True).attentions[0]
    alone = [
        model(ids[:1, :4], output_attentions=True).attentions[0],
        model(ids[1:], output_attentions=True).attentions[0],
    ]
    torch.testing.assert_close(whole[:1, :, :4, :4], alone[0])
    torch.testing.assert_close(whole[1:], alone[1])
    borders = torch.tensor([0, 4, LENGTH, 2 * LENGTH])
    packed = model(ids, cu_seqlens=borders, output_attentions=True).attentions[0]
    torch.testing.assert_close(packed[:1, :, :4, :4], alone[0])
    torch.testing.assert_close(packed[1:], alone[1])
    assert not packed[0, :, 4:, :4].any()


def test_weights_under_checkpointing(build, tokens) -> None:
    model, ids = build("gated_deltanet", "attention").train(), tokens(2, LENGTH)
    expected = model(ids, output_attentions=True).attentions[0]
    expected.square().sum().backward()
    gradient = model.model.embeddings.weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = model(ids, output_attentions=True).attentions[0]
    found.square().sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(model.model.embeddings.weight.grad, gradient)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(OptionError, match="attention weights"):
        model(ids, output_attentions=True)


def test_a_policy_makes_no_weights(build, tokens) -> None:
    model = build("gated_deltanet", "attention")
    with plait.policy(model, "snapkv"), pytest.raises(OptionError, match="output_attentions"):
        model(tokens(1, LENGTH), output_attentions=True)
