"""``generate`` of transformers gives the same tokens with and without a cache, padded or not, in chunks or not."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, TextIteratorStreamer, pipeline
from transformers.utils import generic

from plait import catalog
from plait.data.tokenizers import byte_tokenizer
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
    decode_speed(model, 4, 61)
    assert said == []
    assert not [warning for warning in recwarn if issubclass(warning.category, (FutureWarning, DeprecationWarning))]


def test_text_stops_at_a_string(build, tokens) -> None:
    """``generate`` hands its tokenizer on to where the model is called."""
    tokenizer = byte_tokenizer()
    model = build("gated_deltanet", "attention", vocab_size=258)
    ids = tokens(1, 5)
    text = tokenizer.decode(generate(model, ids)[0, 5:])
    found = generate(model, ids, stop_strings=[text[2]], tokenizer=tokenizer)[0, 5:]
    assert 0 < len(found) < NEW
    assert text[2] in tokenizer.decode(found)


def test_a_pipeline_and_a_streamer_say_what_generate_says(build) -> None:
    tokenizer, model = byte_tokenizer(), build("gated_deltanet", "attention", "hgrn2", vocab_size=258)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    prompts = ["import os", "a"]
    options = {"max_new_tokens": NEW, "do_sample": False}
    ids = [tokenizer(prompt, return_tensors="pt").input_ids for prompt in prompts]
    expected = [tokenizer.decode(model.generate(row, **options)[0]) for row in ids]
    assert len(set(expected[0][len(prompts[0]) :])) > 1
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    for batch in (1, 2):  # two are padded
        found = write(prompts, batch_size=batch, **options)
        assert [one[0]["generated_text"] for one in found] == expected
    streamer = TextIteratorStreamer(tokenizer)
    thread = Thread(target=model.generate, args=(ids[0],), kwargs={**options, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected[0]
    thread.join()


@pytest.mark.slow
def test_a_compiled_model_says_the_same(model, tokens) -> None:
    ids = tokens(2, 6)
    expected = generate(model, ids)
    assert torch.equal(generate(torch.compile(model), ids), expected)
    model.forward = torch.compile(model.forward)
    assert torch.equal(generate(model, ids), expected)


def test_guidance_needs_no_cache(model, tokens) -> None:
    """The text without the prompt is read with a cache of its own."""
    ids = tokens(1, 6)
    cached, uncached = (generate(model, ids, guidance_scale=2.5, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, generate(model, ids))


@pytest.mark.parametrize(
    "options",
    [{"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"},
     {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"num_beams": 4, "force_words_ids": [[5]]}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_ways_whose_code_is_on_the_hub_are_refused_before_the_model_runs(model, tokens, options) -> None:
    """Of transformers, which would run that code: contrastive search, DoLa, beams in groups and with forced words."""
    calls: list[object] = []
    model.register_forward_pre_hook(lambda *arguments: calls.append(arguments))
    with pytest.raises(ValueError, match="requires `trust_remote_code=True`"):
        generate(model, tokens(1, 4), **options)
    assert not calls


def look_ahead(model, input_ids, generation_config, **rest):
    """Of the two likeliest tokens, the one after which the model is surest: a step is tried in a batch, then taken."""
    cache = model.model.new_cache()
    logits = model(input_ids, past_key_values=cache).logits[:, -1]
    for _ in range(generation_config.max_new_tokens):
        choices = logits.topk(2).indices[0, :, None]
        tried = copy.deepcopy(cache)
        tried.batch_repeat_interleave(2)
        after = model(choices, past_key_values=tried).logits[:, -1]
        best = after.softmax(-1).amax(-1).argmax()
        input_ids = torch.cat([input_ids, choices[best][None]], dim=1)
        tried.batch_select_indices(best[None])
        cache, logits = tried, after[best][None]
    return input_ids


def test_generation_of_ones_own(model, tokens) -> None:
    """A search in the manner of contrastive search: caches are copied, repeated and selected from."""
    ids = tokens(1, 6)
    found = model.generate(ids, custom_generate=look_ahead, max_new_tokens=NEW, do_sample=False)
    expected = ids
    logits = model(ids, use_cache=False).logits[:, -1]
    for _ in range(NEW):
        rows = torch.cat([expected.expand(2, -1), logits.topk(2).indices[0, :, None]], dim=1)
        after = model(rows, use_cache=False).logits[:, -1]
        best = after.softmax(-1).amax(-1).argmax()
        expected, logits = rows[best][None], after[best][None]
    assert torch.equal(found, expected)


def test_continuous_batching_is_refused(model, tokens) -> None:
    with pytest.raises(OptionError, match="Continuous batching"):
        model.generate_batch([[1, 2, 3]], max_new_tokens=2)
    with pytest.raises(OptionError, match="Continuous batching"):
        generate(model, tokens(1, 3), cache_implementation="paged")
