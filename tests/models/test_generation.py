"""``generate`` of transformers gives the same tokens with and without a cache, padded or not, in chunks or not."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import generic

from plait import catalog
from plait.errors import CacheError, OptionError
from plait.evaluation.decode import decode_speed
from plait.models import PlaitCache
from plait.models.cache import CACHE_NAME

NEW = 7
PLANS = [(name,) for name in catalog.names("mixer")] + [("gated_deltanet", "attention", "hgrn2")]


@pytest.fixture
def model(build):
    return build("gated_deltanet", "attention", "hgrn2")


def generate(model, ids, **options):
    return model.generate(ids, pad_token_id=0, **{"max_new_tokens": NEW, "do_sample": False, **options})


def by_hand(model, ids: torch.Tensor) -> torch.Tensor:
    """Greedy decoding without a cache, one whole forward per token."""
    for _ in range(NEW):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.mark.parametrize("plan", PLANS, ids="-".join)
def test_greedy_equals_decoding_by_hand(build, tokens, plan: tuple[str, ...]) -> None:
    model, ids = build(*plan), tokens(2, 6)
    expected = by_hand(model, ids)
    assert len(expected[:, 6:].unique()) > 2  # not a constant
    assert torch.equal(generate(model, ids), expected)
    assert torch.equal(generate(model, ids, use_cache=False), expected)


@pytest.mark.parametrize("plan", PLANS, ids="-".join)
def test_left_padded_batch_equals_single_rows(build, tokens, plan: tuple[str, ...]) -> None:
    model, ids, lengths = build(*plan), tokens(3, 6), [6, 3, 1]
    mask = torch.tensor([[0] * (6 - n) + [1] * n for n in lengths])
    together = generate(model, ids * mask, attention_mask=mask)[:, 6:]
    for row, length in enumerate(lengths):
        assert torch.equal(together[row], generate(model, ids[row : row + 1, 6 - length :])[0, length:])


def test_beam_search(model, tokens) -> None:
    ids, mask = tokens(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = {"num_beams": 3, "num_return_sequences": 2, "attention_mask": mask, "return_dict_in_generate": True}
    cached = generate(model, ids * mask, output_scores=True, **options)
    uncached = generate(model, ids * mask, output_scores=True, use_cache=False, **options)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.sequences_scores, uncached.sequences_scores)
    assert cached.sequences.shape[0] == 4
    assert not torch.equal(cached.sequences[0], cached.sequences[1])


def test_sampling_and_several_sequences(model, tokens) -> None:
    ids, drawn = tokens(2, 6), []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(generate(model, ids, do_sample=True, num_return_sequences=3, use_cache=use_cache))
    assert torch.equal(*drawn)
    assert drawn[0].shape == (6, 6 + NEW)
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_chunked_prefill(model, tokens, chunk: int) -> None:
    ids, mask = tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    expected = generate(model, ids * mask, attention_mask=mask)
    assert torch.equal(generate(model, ids * mask, attention_mask=mask, prefill_chunk_size=chunk), expected)


def test_a_prefix_goes_on(model, tokens) -> None:
    """The cache of a prefix, forked, serves several endings; the cache that generate filled goes on too."""
    ids = tokens(1, 9)
    cache = PlaitCache(model.config)
    model(ids[:, :5], past_key_values=cache)
    endings = torch.stack([ids[0], torch.cat([ids[0, :5], tokens(1, 4, seed=8)[0]])])
    expected = generate(model, endings)
    assert torch.equal(generate(model, endings, **{CACHE_NAME: cache.fork(2)}), expected)
    first = generate(model, ids, **{CACHE_NAME: cache}, return_dict_in_generate=True)
    assert first[CACHE_NAME] is cache
    longer = torch.cat([first.sequences, ids[:, :3]], dim=1)
    assert torch.equal(generate(model, longer, **{CACHE_NAME: cache}), generate(model, longer))


def test_embeddings_as_prompt(model, tokens) -> None:
    ids = tokens(2, 5)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(generate(model, None, inputs_embeds=embedded), generate(model, ids)[:, 5:])


DRAFTS = [("gated_deltanet", "attention", "hgrn2"), ("hgrn", "mla"), ("kda", "lizard"), ("window", "deltanet")]
WINDOW = {"window": {"mixer": "attention", "window": 4}}


@pytest.fixture
def llama() -> LlamaForCausalLM:
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).double().eval()


@pytest.mark.parametrize("plan", DRAFTS, ids="-".join)
def test_drafts_change_no_token(build, tokens, llama, plan: tuple[str, ...]) -> None:
    """Drafts from the prompt, from a like model (all right) and from others (mostly wrong), and as a draft."""
    model = build(*plan, mixers=WINDOW if "window" in plan else None)
    ids, passes = tokens(1, 6).repeat(1, 3), []
    expected = generate(model, ids, max_new_tokens=15)
    like = copy.deepcopy(model)
    model.register_forward_hook(lambda *_: passes.append(1))
    options = {"max_new_tokens": 15}
    drafts = [
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": like},
        {"assistant_model": build("attention", "gated_deltanet")},
        {"assistant_model": llama},
    ]
    counts = []
    for draft in drafts:
        passes.clear()
        assert torch.equal(generate(model, ids, **options, **draft), expected)
        counts.append(len(passes))
    assert counts[1] < 15  # several tokens a pass
    assert torch.equal(generate(llama, ids, **options, assistant_model=model), generate(llama, ids, **options))


def test_drafts_leave_the_cache_of_a_caller_whole(model, tokens) -> None:
    ids, cache = tokens(1, 6).repeat(1, 3), PlaitCache(model.config)
    first = generate(model, ids, **{CACHE_NAME: cache}, prompt_lookup_num_tokens=3)
    assert not any(layer.record_past or layer.recall for layer in cache.layers)
    longer = torch.cat([first, ids[:, :3]], dim=1)
    assert torch.equal(generate(model, longer, **{CACHE_NAME: cache}), generate(model, longer))


@torch.no_grad()
def test_a_recording_cache_takes_tokens_back(model, tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a pass of which only the end is kept, over a padded row."""
    monkeypatch.setattr("plait.models.cache.LONGEST", 4)
    ids = tokens(2, 14)
    mask = torch.tensor([[0] * 9 + [1] * 5, [1] * 14])
    expected = model(ids[:, :11], attention_mask=mask[:, :11], past_key_values=(short := PlaitCache(model.config)))
    expected = model(ids[:, 12:], past_key_values=short).logits
    cache = PlaitCache(model.config)
    cache.activate_past_recording()
    assert cache.is_croppable
    model(ids, attention_mask=mask, past_key_values=cache)
    with pytest.raises(CacheError, match="4 were recorded"):
        cache.crop(-5)
    cache.crop(-3)
    model(ids[:, 12:13], past_key_values=cache)
    model(ids[:, :2], past_key_values=cache)
    cache.crop(-3)
    torch.testing.assert_close(model(ids[:, 12:], past_key_values=cache).logits, expected)
    assert copy.deepcopy(cache).layers[0].recall is None
    cache.stop_recording()
    with pytest.raises(CacheError, match="cannot forget"):
        cache.crop(-1)


@pytest.mark.parametrize("implementation", ["static", "offloaded", "quantized"])
def test_other_caches_are_refused(model, tokens, implementation: str) -> None:
    with pytest.raises(OptionError, match=implementation):
        generate(model, tokens(1, 3), cache_implementation=implementation)
    with pytest.raises(CacheError, match="DynamicCache"):
        generate(model, tokens(1, 3), **{CACHE_NAME: DynamicCache()})


def test_both_names_of_the_cache_do(model, tokens) -> None:
    ids = tokens(1, 5)
    expected = model(ids).logits[:, -1:]
    for module, read in ((model, lambda o: o.logits), (model.model, lambda o: model.lm_head(o.last_hidden_state))):
        for name in ("cache", "past_key_values"):
            cache = PlaitCache(model.config)
            assert getattr(module(ids[:, :4], **{name: cache}), CACHE_NAME) is cache
            torch.testing.assert_close(read(module(ids[:, 4:], **{name: cache})), expected)
            with pytest.raises(OptionError, match="same thing"):
                module(ids, cache=cache, past_key_values=cache)


def test_no_name_of_the_cache_is_deprecated(
    model, tokens, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    said: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append)
    ids, cache = tokens(1, 5), PlaitCache(model.config)
    generate(model, ids, num_beams=2)
    generate(model, ids, **{CACHE_NAME: cache}, return_dict_in_generate=True)
    model(ids, past_key_values=cache)
    model(ids, labels=ids, return_dict=False)
    decode_speed(model, [4], 61)
    assert said == []
    assert not [warning for warning in recwarn if issubclass(warning.category, (FutureWarning, DeprecationWarning))]
