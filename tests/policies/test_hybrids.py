"""Hybrids of transformers: a policy serves their softmax layers, and the recurrent ones run as ever."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import catalog
from plait.errors import CacheError, OptionError
from plait.models.cache import CACHE_NAME
from plait.probes import probe
from policies.test_entry import EXPERTS, logits, model_of, refused
from policies.tiny_models import generate, left_padded, tokens

MAMBA = {
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
DELTA = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "mamba_d_state": 4,
    "mamba_dt_rank": 4,
}
NEMOTRON = {
    "hybrid_override_pattern": "M*-",
    "num_hidden_layers": 3,
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 4,
    "n_groups": 1,
    "chunk_size": 8,
}
GRANITE = {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32}
#: What a family needs beyond the common sizes, and its softmax layers.
HYBRIDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "qwen3_next": ({**DELTA, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, **EXPERTS}, (1,)),
    "qwen3_5_text": (DELTA, (1,)),
    "jamba": ({**JAMBA, **EXPERTS}, (1,)),
    "bamba": ({"attn_layer_indices": [1], **MAMBA}, (1,)),
    "granitemoehybrid": ({**GRANITE, **MAMBA, **EXPERTS}, (1,)),
    "falcon_h1": ({**MAMBA, "mamba_d_ssm": 64}, (0, 1)),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, (1,)),
    "nemotron_h": (NEMOTRON, (1,)),
}


def stepwise(model: Any, ids: Tensor, prompt: int) -> Tensor:
    with torch.no_grad():
        out = model(ids[:, :prompt], use_cache=True)
        parts = [out.logits]
        for i in range(prompt, ids.shape[1]):
            out = model(ids[:, i : i + 1], use_cache=True, **{CACHE_NAME: out[CACHE_NAME]})
            parts.append(out.logits)
    return torch.cat(parts, dim=1)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("family", HYBRIDS)
def test_softmax_layers_are_served_and_alone_counted(family: str) -> None:
    needs, layers = HYBRIDS[family]
    model, ids = model_of(family, needs), tokens(2, 20)
    expected, whole = stepwise(model, ids, 14), logits(model, ids)
    for name in ("dense", "snapkv", "quest"):
        options = catalog.get(name, "policy").load().with_budget(20, 20)
        with plait.policy(model, name, **options) as applied:
            close(stepwise(model, ids, 14), expected)
            report = applied.report()
        assert report.served == layers
        assert set(report.layers) == set(layers)
        assert report.pairs == report.dense_pairs == 2 * 4 * 20 * 21 // 2 * len(layers)
    with plait.policy(model, "streaming", sinks=1, window=3) as applied:
        assert (logits(model, ids) - whole).abs().max() > 1e-3
        assert applied.report().share < 0.5
    assert torch.equal(logits(model, ids), whole)


@pytest.mark.parametrize("family", HYBRIDS)
def test_generation(family: str) -> None:
    """Left-padded rows and beams say what the model says, and a narrow policy runs."""
    needs, _ = HYBRIDS[family]
    model, ids = model_of(family, needs), tokens(2, 20)
    batch = left_padded([ids[0, :14], ids[1]])
    ways: tuple[dict[str, Any], ...] = ({}, {"num_beams": 3})
    expected = [generate(model, batch, new=4, **way) for way in ways]
    with plait.policy(model, "dense"):
        for said, way in zip(expected, ways, strict=True):
            assert torch.equal(generate(model, batch, new=4, **way), said)
    with plait.policy(model, "tova", capacity=5) as applied:
        assert generate(model, batch, new=4).shape == (2, 4)
        report = applied.report()
    assert 0 < report.bytes_held < report.bytes_held_dense
    with plait.policy(model, "dense"), pytest.raises((OptionError, ValueError), match=r"drafts|stateful"):
        generate(model, {"input_ids": ids[:1]}, prompt_lookup_num_tokens=2)


@pytest.mark.parametrize("family", ["qwen3_next", "falcon_h1", "lfm2"])
def test_snapshots_forks_and_rows(family: str) -> None:
    model, ids = model_of(family, HYBRIDS[family][0]), tokens(2, 18)
    with plait.policy(model, "tova", capacity=6), torch.no_grad():
        expected = stepwise(model, ids, 12)
        cache = model(ids[:, :12], use_cache=True)[CACHE_NAME]
        snapshot = cache.snapshot()

        def rest(memory: Any, rows: Tensor) -> Tensor:
            steps = [model(rows[:, i : i + 1], **{CACHE_NAME: memory}).logits for i in range(12, 18)]
            return torch.cat(steps, dim=1)

        twice = cache.fork(2)
        close(rest(cache, ids), expected[:, 12:])
        assert cache.get_seq_length() == 18
        with pytest.raises(CacheError, match="snapshot"):
            cache.crop(-1)
        cache.restore(snapshot)
        assert cache.get_seq_length() == 12
        close(rest(cache, ids), expected[:, 12:])
        close(rest(twice, ids.repeat_interleave(2, dim=0)), expected[:, 12:].repeat_interleave(2, dim=0))
        cache.restore(snapshot)
        cache.batch_select_indices(torch.tensor([1]))
        close(rest(cache, ids[1:]), expected[1:, 12:])


def test_a_probe_sees_the_softmax_layers() -> None:
    heads = probe(model_of("qwen3_next", HYBRIDS["qwen3_next"][0]), "attention_entropy")
    heads.run(tokens(2, 16))
    assert set(heads.table()["layer"]) == {1}


def test_hybrids_that_cannot_be_served() -> None:
    minimax = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8, **EXPERTS}
    refused(model_of("minimax", minimax), "MiniMaxCache")
    griffin = {"block_types": ["recurrent", "attention"], "attention_window_size": 8, "lru_width": 32}
    refused(model_of("recurrent_gemma", griffin), "in the model itself")
