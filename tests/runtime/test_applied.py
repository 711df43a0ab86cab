"""What holds for the runtime itself: the ten oracles, on many families of models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaForCausalLM

import plait
from plait.errors import CacheError, OptionError
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.models.cache import CACHE_NAME as CACHE
from plait.policies import Dense, masked_reference
from plait.runtime.transformers_hooks import _attached
from policies.tiny_models import FAMILIES, decoder, generate, left_padded, tokens

MODELS = [*FAMILIES, "plait"]


def logits(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(ids, **arguments).logits
    return out


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("family", MODELS)
def test_dense_is_the_model(family: str) -> None:
    """Oracles 1, 3, 4: logits, greedy, beam and chunked generations of a left-padded batch, with and without it."""
    model = decoder(family)
    ids = tokens(2, 21)
    rows = [tokens(1, 13)[0], tokens(1, 18, seed=4)[0]]
    batch = left_padded(rows)
    expected = logits(model, ids)
    alone = [generate(model, {"input_ids": row[None]}) for row in rows]
    beams = generate(model, batch, num_beams=3)
    with plait.policy(model, "dense"):
        close(logits(model, ids), expected)
        assert torch.equal(generate(model, batch), torch.cat(alone))
        assert torch.equal(generate(model, batch, num_beams=3), beams)
        if family != "plait":
            assert torch.equal(generate(model, batch, prefill_chunk_size=5), torch.cat(alone))


@pytest.mark.parametrize("family", MODELS)
def test_the_model_is_as_before(family: str) -> None:
    model = decoder(family, **({"sliding_window": None} if family == "mistral" else {}))
    ids = tokens(1, 9)
    before = logits(model, ids)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    config = copy.deepcopy(model.config.to_dict())
    with plait.policy(model, "streaming", sinks=1, window=2):
        assert not torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    after = [module.config for module in model.modules() if hasattr(module, "config")]
    assert all(a is b for a, b in zip(configs, after, strict=True))
    assert model.config.to_dict() == config
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not _attached


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "plait"])
def test_tokens_seen_not_tokens_stored(family: str) -> None:
    """Oracle 2: lengths and positions go on after eviction."""
    model = decoder(family)
    ids = tokens(1, 20)
    with plait.policy(model, "streaming", sinks=2, window=5) as applied:
        whole = logits(model, ids)
        with torch.no_grad():
            first = model(ids[:, :17], use_cache=True)
            cache = first[CACHE]
            assert [cache.get_seq_length(layer) for layer in range(2)] == [17, 17]
            rest = [model(ids[:, i : i + 1], **{CACHE: cache}).logits for i in range(17, 20)]
        assert cache.get_seq_length() == 20
        assert applied.report().bytes_held < applied.report().bytes_held_dense
    close(torch.cat([first.logits, *rest], dim=1), whole)


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_padding_on_the_right_and_in_the_middle_is_ignored(family: str) -> None:
    model = decoder(family)
    row = tokens(1, 9)
    ids = torch.cat(
        [row[:, :4], torch.zeros(1, 2, dtype=torch.long), row[:, 4:], torch.zeros(1, 3, dtype=torch.long)], 1
    )
    mask = (ids != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with plait.policy(model, "streaming", sinks=1, window=4):
        expected = logits(model, row)
        found = logits(model, ids, attention_mask=mask, **({} if family == "plait" else {"position_ids": positions}))
    close(found[mask.bool()], expected[0])


def test_dense_counts_every_pair_once() -> None:
    """Oracle 6: T (T + 1) / 2 pairs a head; one more key a step; bytes of keys and values."""
    model = decoder("llama")
    with plait.policy(model, "dense") as applied:
        logits(model, tokens(3, 11))
        report = applied.report()
        assert report.layers[1]["prefill"].pairs == 3 * 4 * 11 * 12 // 2
        assert (report.pairs, report.share) == (2 * 3 * 4 * 66, 1.0)
        applied.reset_report()
        generate(model, {"input_ids": tokens(1, 11)}, new=4)
        report = applied.report()
    assert report.prefill.pairs == 2 * 4 * 66
    assert report.decode.pairs == 2 * 4 * (12 + 13 + 14)
    assert report.bytes_held == report.bytes_held_dense == 2 * 2 * 2 * 14 * 8 * 4  # layers, k and v, heads, tokens, D
    assert report.decode.bytes_read == 2 * 2 * 2 * (12 + 13 + 14) * 8 * 4


def test_padding_is_not_counted() -> None:
    model = decoder("llama")
    with plait.policy(model, "dense") as applied, torch.no_grad():
        model(**left_padded([tokens(1, 5)[0], tokens(1, 9)[0]]))
    assert applied.report().pairs == applied.report().dense_pairs == 2 * 4 * (15 + 45)


def test_windowed_layers_keep_to_their_window() -> None:
    """The model's own window of 7 bounds pairs and memory of its sliding layers under every policy."""
    model = decoder("gemma3_text")
    with plait.policy(model, "streaming", sinks=1, window=3) as applied, torch.no_grad():
        model(tokens(1, 20), use_cache=True)
        report = applied.report()
    assert report.served == (1,)
    assert report.layers[0]["prefill"].pairs == 4 * (7 * 20 - 7 * 6 // 2)
    assert report.layers[0]["prefill"].pairs == report.layers[0]["prefill"].dense_pairs
    assert applied.meter.bytes_held == {0: 2 * 2 * 6 * 16 * 4, 1: 2 * 2 * 3 * 16 * 4}


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_cache_operations(family: str) -> None:
    """Oracle 7: rows reordered and repeated, tokens taken back, snapshots, and a clear error where not possible."""
    model = decoder(family)
    ids = tokens(3, 12)
    with plait.policy(model, "dense"), torch.no_grad():
        cache = model(ids, use_cache=True)[CACHE]
        expected = logits(model, torch.cat([ids[[2, 0]], tokens(2, 1)], dim=1))[:, -1]
        snapshot = cache.snapshot()
        cache.reorder_cache(torch.tensor([2, 0, 1]))
        cache.batch_select_indices(torch.tensor([0, 1]))
        close(model(tokens(2, 1), **{CACHE: cache}).logits[:, -1], expected)
        cache.restore(snapshot)
        cache.crop(-4)
        assert cache.get_seq_length() == 8
        close(model(ids[:, 8:], **{CACHE: cache}).logits, logits(model, ids)[:, 8:])
        cache.restore(snapshot)
        twice = cache.fork(2)
        assert twice.get_seq_length() == 12
        close(
            model(tokens(6, 1), **{CACHE: twice}).logits[:, -1],
            logits(model, torch.cat([ids.repeat_interleave(2, 0), tokens(6, 1)], 1))[:, -1],
        )
    with plait.policy(model, "streaming", sinks=1, window=4), torch.no_grad():
        cache = model(ids, use_cache=True)[CACHE]
        with pytest.raises(CacheError, match="snapshot"):
            cache.crop(-1)


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_two_models_and_nested_policies(family: str) -> None:
    """Oracle 8."""
    one, two = decoder(family), decoder(family)
    ids = tokens(1, 14)
    dense = logits(one, ids)
    with plait.policy(one, "streaming", sinks=1, window=3):
        narrow = logits(one, ids)
        assert torch.equal(logits(two, ids), dense)
        with plait.policy(two, "streaming", sinks=1, window=6):
            wide = logits(two, ids)
            assert torch.equal(logits(one, ids), narrow)
        with plait.policy(one, "streaming", sinks=1, window=6) as inner:
            assert torch.equal(logits(one, ids), wide)
            pairs = inner.report().pairs
        assert torch.equal(logits(one, ids), narrow)
        assert inner.report().pairs == pairs
    assert not torch.equal(narrow, wide)
    assert torch.equal(logits(one, ids), dense)


def test_models_that_share_a_configuration() -> None:
    one = decoder("llama")
    two = LlamaForCausalLM(one.config).eval()
    ids = tokens(1, 9)
    before = logits(two, ids)
    with plait.policy(one, "streaming", sinks=1, window=2):
        assert torch.equal(logits(two, ids), before)


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_an_exception_inside_restores_the_model(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(family)
    ids = tokens(1, 9)
    before = logits(model, ids)

    def fail(*args: object) -> Tensor:
        raise FloatingPointError("broken policy")

    monkeypatch.setattr(Dense, "decode", fail)
    with pytest.raises(FloatingPointError), plait.policy(model, "dense"):
        generate(model, {"input_ids": ids})
    assert torch.equal(logits(model, ids), before)
    assert not _attached


@pytest.mark.parametrize("family", ["llama", "plait"])
def test_caches_do_not_cross_borders(family: str) -> None:
    model = decoder(family)
    ids, more = tokens(1, 9), tokens(1, 1)
    plain = model(ids, use_cache=True)[CACHE]
    with plait.policy(model, "dense"):
        with pytest.raises(CacheError, match="without the policy"):
            model(more, **{CACHE: plain})
        cache = model(ids, use_cache=True)[CACHE]
    with pytest.raises(CacheError, match="not applied here"):
        model(more, **{CACHE: cache})
    with plait.policy(model, "streaming"), pytest.raises(CacheError, match="another policy"):
        model(more, **{CACHE: cache})


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("bloom", {"n_head": 4}, "own attention code"),
        ("t5", {"d_kv": 8}, "encoder-decoder"),
        ("llama4_text", {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48}, "chunked_attention"),
        ("mamba", {"state_size": 4}, "attend"),
        ("bert", {"is_decoder": False}, "not causal"),
    ],
)
def test_unsupported_models_are_refused(family: str, changes: dict[str, Any], reason: str) -> None:
    """Oracle 10: at entry, with the reason, and nothing is left behind."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **sizes, num_key_value_heads=2, intermediate_size=48, **changes)
    if family == "t5":
        from transformers import T5ForConditionalGeneration

        model: Any = T5ForConditionalGeneration(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(OptionError, match=reason), plait.policy(model, "streaming"):
        pass
    assert not _attached
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_hybrid_without_softmax_layers_is_refused() -> None:
    model = PlaitForCausalLM(PlaitConfig(vocab_size=61, hidden_size=32, layer_types=["retnet"]))
    with pytest.raises(OptionError, match="no softmax"), plait.policy(model, "streaming"):
        pass
    with pytest.raises(OptionError, match="Linear"), plait.policy(torch.nn.Linear(2, 2), "streaming"):
        pass


def test_a_hybrid_keeps_its_linear_layers() -> None:
    torch.manual_seed(0)
    config = PlaitConfig(vocab_size=61, hidden_size=32, layer_types=["gla", "attention"], mixers={})
    model = PlaitForCausalLM(config).eval()
    ids = tokens(1, 12)
    expected = generate(model, {"input_ids": ids})
    with plait.policy(model, "dense") as applied:
        assert torch.equal(generate(model, {"input_ids": ids}), expected)
        assert [layer.index for layer in applied.info.layers] == [1]  # type: ignore[union-attr]


def test_structures_that_a_policy_cannot_see_are_refused() -> None:
    model = decoder("llama")
    ids = tokens(1, 6)
    with plait.policy(model, "dense"):
        with pytest.raises(OptionError, match="packed"):
            model(ids, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))
        with pytest.raises(OptionError, match="padding mask"):
            model(ids, attention_mask=torch.ones(1, 1, 6, 6))
        with pytest.raises(CacheError, match="StaticCache"):
            generate(model, {"input_ids": ids}, cache_implementation="static")
        filled = DynamicCache(config=model.config)
        filled.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
        with pytest.raises(CacheError, match="without the policy"):
            model(ids, **{CACHE: filled})


def test_gradients_and_checkpointing_pass_through() -> None:
    """No call under gradient checkpointing touches memory twice, and gradients agree with the model's own."""
    model = decoder("llama")
    ids = tokens(2, 10)
    model(ids, labels=ids, use_cache=False).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with plait.policy(model, "dense"):
        model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, expected[name])  # type: ignore[arg-type]


def test_padded_gradients_are_finite() -> None:
    model = decoder("llama")
    with plait.policy(model, "streaming", sinks=1, window=3):
        model(**left_padded([tokens(1, 4)[0], tokens(1, 9)[0]])).logits.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_reference_computes_with_masks() -> None:
    model = decoder("llama")
    ids = tokens(2, 20)
    with plait.policy(model, "streaming", sinks=2, window=5) as real:
        found = logits(model, ids)
    with masked_reference(model, "streaming", sinks=2, window=5) as dense:
        close(found, logits(model, ids))
    assert real.report().pairs == dense.report().pairs


def test_a_name_or_option_that_does_not_exist() -> None:
    model = decoder("llama")
    with pytest.raises(plait.errors.CatalogError, match="streaming"):
        plait.policy(model, "streeming")
    with pytest.raises(OptionError, match="'window'"):
        plait.policy(model, "streaming", windw=4)
    with pytest.raises(OptionError, match="1 or more"):
        plait.policy(model, "streaming", window=0)
