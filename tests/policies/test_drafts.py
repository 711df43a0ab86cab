"""Generation from drafts under a policy: the same text, or a refusal before it begins."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

import plait
from plait import catalog
from plait.errors import OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.recall import LONGEST
from plait.probes.masking import MaskedHeads
from policies.tiny_models import decoder, generate, tokens


def prompt() -> dict[str, Any]:
    return {"input_ids": tokens(1, 12).repeat(1, 2)}


@pytest.mark.parametrize("family", ["llama", "plait"])
@pytest.mark.parametrize("name", [n for n in catalog.names("policy") if n not in ("dense", "per_layer")])
def test_policies_refuse_drafts_before_anything_runs(name: str, family: str) -> None:
    model = decoder(family)
    kind = catalog.get(name, "policy").load()
    with plait.policy(model, name, **kind.with_budget(8, 40)) as applied:
        for drafts in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": decoder(family)}):
            with pytest.raises(OptionError, match=f"{name}.*drafts"):
                generate(model, prompt(), new=8, **drafts)
        assert applied.report().dense_pairs == 0
        generate(model, prompt(), new=2)


def test_dense_attention_takes_drafts() -> None:
    model = decoder("llama")
    expected = generate(model, prompt(), new=12)
    with plait.policy(model, "dense"):
        assert torch.equal(generate(model, prompt(), new=12, prompt_lookup_num_tokens=3), expected)
        assert torch.equal(generate(model, prompt(), new=12, assistant_model=decoder("llama")), expected)
    assert torch.equal(generate(model, prompt(), new=12, prompt_lookup_num_tokens=3), expected)


@pytest.mark.parametrize("policy", [False, True])
def test_long_drafts_on_a_hybrid_are_refused_before_anything_runs(policy: bool) -> None:
    torch.manual_seed(0)
    model = PlaitForCausalLM(PlaitConfig(vocab_size=61, hidden_size=32, layer_types=["gla", "attention"])).eval()
    ids = {"input_ids": tokens(1, LONGEST + 60).repeat(1, 2)}
    expected = generate(model, ids, new=4)
    with plait.policy(model, "dense") if policy else nullcontext():
        assert torch.equal(generate(model, ids, new=4, prompt_lookup_num_tokens=LONGEST), expected)
        with pytest.raises(OptionError, match="Drafts of 257 tokens are too long"):
            generate(model, ids, new=4, prompt_lookup_num_tokens=LONGEST + 1)
    attention = decoder("plait")
    assert torch.equal(
        generate(attention, ids, new=4, prompt_lookup_num_tokens=LONGEST + 40), generate(attention, ids, new=4)
    )


def test_windows_and_masked_heads_refuse_drafts() -> None:
    """A window forgets what a rejected draft would need; heads are masked in single tokens only."""
    with plait.policy(decoder("gemma3_text"), "dense") as applied, pytest.raises(OptionError, match="drafts"):
        generate(applied.model, prompt(), prompt_lookup_num_tokens=3)
    with plait.policy(decoder("llama"), MaskedHeads([(0, 1)])) as applied:
        assert not applied.takes_drafts


def test_continuous_batching_is_refused() -> None:
    model = decoder("llama")
    with plait.policy(model, "streaming"), pytest.raises(OptionError, match="continuous batching"):
        model.generate_batch(inputs=[[3, 4, 5]])
