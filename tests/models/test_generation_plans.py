"""What transformers' own suite asks of ``generate``, and what users write around it, over the plans of the suite."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from models.test_common_suite import PLANS
from plait.errors import OptionError
from plait.models import PlaitCache, PlaitForCausalLM
from plait.models.cache import CACHE_NAME

NEW = 5
OPTIONS = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(params=PLANS)
def model(build, request: pytest.FixtureRequest) -> PlaitForCausalLM:
    return build(*PLANS[request.param]["layer_types"])


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_changes_no_token(model, tokens, way: str) -> None:
    ids, texts = tokens(2, 6), []
    for use_cache in (True, False):
        torch.manual_seed(4)
        texts.append(model.generate(ids, **{**OPTIONS, **WAYS[way]}, use_cache=use_cache))
    assert torch.equal(*texts)
    assert texts[0].shape == (2, 6 + NEW)


def test_padding_and_embeddings_change_no_token(model, tokens) -> None:
    ids = tokens(1, 6)
    expected = model.generate(ids, **OPTIONS)[:, 6:]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6])
    assert torch.equal(model.generate(padded, attention_mask=mask, **OPTIONS)[:, 9:], expected)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embedded, **OPTIONS), expected)


def test_turns_go_on_from_a_cache(model, tokens) -> None:
    text, cache = tokens(1, 4), PlaitCache(model.config)
    for turn in range(3):
        text = torch.cat([text, tokens(1, 2 + turn)], dim=1)
        options = {**OPTIONS, "attention_mask": torch.ones_like(text)}  # the padding token may have been said
        expected = model.generate(text, **options)
        text = model.generate(text, **options, **{CACHE_NAME: cache})
        assert torch.equal(text, expected)


def test_drafts_and_refusals(model, tokens) -> None:
    ids = tokens(1, 3).repeat(1, 3)
    expected = model.generate(ids, **OPTIONS)
    assert torch.equal(model.generate(ids, **OPTIONS, prompt_lookup_num_tokens=2), expected)
    assert torch.equal(model.generate(ids, **OPTIONS, assistant_model=copy.deepcopy(model)), expected)
    with pytest.raises(OptionError, match="cache_implementation='static'"):
        model.generate(ids, **OPTIONS, cache_implementation="static")


class Never(LogitsProcessor):
    """Forbids one token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.token] = float("-inf")
        return scores


class AfterTwo(StoppingCriteria):
    """Ends every row after two new tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length + 2)


def test_processors_and_criteria(model, tokens) -> None:
    ids = tokens(2, 6)
    expected = model.generate(ids, **OPTIONS)
    stopped = model.generate(ids, **OPTIONS, stopping_criteria=StoppingCriteriaList([AfterTwo(6)]))
    assert torch.equal(stopped, expected[:, :8])
    token = int(expected[0, 6])
    other = model.generate(ids, **OPTIONS, logits_processor=LogitsProcessorList([Never(token)]))
    assert not (other[:, 6:] == token).any()


def test_copies_say_the_same(model, tokens, tmp_path: Path) -> None:
    ids = tokens(2, 6)
    expected = model.generate(ids, **OPTIONS)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = PlaitForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert torch.equal(twin.generate(ids, **OPTIONS), expected)


def test_other_sizes_and_types(model, tokens) -> None:
    ids, before = tokens(2, 6), model.config.vocab_size
    logits = model(ids).logits
    model.resize_token_embeddings(before + 3, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits[..., :before], logits)
    assert model.config.vocab_size == before + 3
    assert model(ids, labels=ids).loss.isfinite()
    assert model.to(torch.bfloat16).generate(ids, **OPTIONS).shape == (2, 6 + NEW)
