"""Scores by hand, contexts that are computed once, and models whose state cannot be shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from evaluation.harness.samples import MODELS, llama
from plait.errors import DataError, OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.harness.scoring import Request, Scorer, _similar, request

QUESTION = (11, 12, 13, 14, 15, 16)
CHOICES = ((1, 2, 3), (4, 5, 6), (7,), (8,), (1, 2, 3, 9))
REQUESTS = [Request(QUESTION, choice) for choice in CHOICES]


def scorer(model: PreTrainedModel, size: Any = "auto") -> Scorer:
    """A scorer that knows already whether it can share states, so that its passes can be counted."""
    found = Scorer(model, Batches(size, torch.device("cpu")))
    assert isinstance(found.shares_state, bool)
    return found


def by_hand(model: PreTrainedModel, item: Request) -> float:
    logits = model(torch.tensor([item.prefix + item.continuation])).logits[0]
    log_probabilities = logits.log_softmax(-1)
    start = len(item.prefix)
    return sum(float(log_probabilities[start + i - 1, token]) for i, token in enumerate(item.continuation))


def shapes(model: nn.Module) -> list[tuple[int, ...]]:
    """Grows by the shape of the ids of each forward pass."""
    seen: list[tuple[int, ...]] = []
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    embedding.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    return seen


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_by_hand(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    requests = [*REQUESTS, Request((5,), (6, 7)), Request(QUESTION[:-1] + (3,), (1, 2))]
    wanted = [by_hand(model, item) for item in requests]
    assert [score.loglikelihood for score in scorer(model)(requests)] == pytest.approx(wanted, abs=1e-5)


def test_uniform_model() -> None:
    """Without weights in the head, each token costs log V and the first token is the greedy one."""
    model = llama()
    nn.init.zeros_(model.get_output_embeddings().weight)
    scores = scorer(model)([Request((3, 4), (0, 0)), Request((3, 4), (0, 1)), Request((3, 4), (0,))])
    log = torch.tensor(320.0).log().item()
    assert [s.loglikelihood for s in scores] == pytest.approx([-2 * log, -2 * log, -log], rel=1e-6)
    assert [s.is_greedy for s in scores] == [True, False, True]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_context_is_computed_once(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    score = scorer(model)
    assert score.shares_state
    seen = shapes(model)
    score(REQUESTS)
    # The question; then its choices without their last tokens, which are not read: 1 2 3, 1 2, 4 5 and nothing.
    assert seen == [(1, 6), (4, 3)]


def test_contexts_of_one_length_are_one_batch() -> None:
    model = llama()
    score = scorer(model)
    assert score.shares_state
    seen = shapes(model)
    score([Request((start, 20, 30), choice) for start in (1, 2, 3) for choice in ((5, 6, 7), (8, 9, 10))])
    assert seen == [(3, 3), (6, 2)]


def test_contexts_with_one_continuation_are_computed_whole() -> None:
    model = llama()
    score = scorer(model)
    seen = shapes(model)
    score(
        [
            Request((1, 2, 3), (4, 5)),
            Request((1, 2), (3, 4, 6)),  # reads the same four tokens as the one before
            Request((7, 7), (3, 4, 6)),
            Request((9, 9, 9, 9, 9), (1,)),
        ]
    )
    assert seen == [(3, 5)]


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_contexts_of_similar_length_are_read_up_to_the_shortest(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    score = scorer(model)
    assert score.shares_state
    contexts = ((1, 2, 3), (4, 5, 6, 7, 8), tuple(range(200)))
    requests = [Request(context, choice) for context in contexts for choice in ((9, 8, 7), (6,))]
    wanted = [by_hand(model, item) for item in requests]
    seen = shapes(model)
    assert [s.loglikelihood for s in score(requests)] == pytest.approx(wanted, abs=1e-5)
    # 1 2 3 and 4 5 6, then at most 7 8 9 8; the third context is too long to share a pass with them
    assert seen == [(2, 3), (4, 4), (1, 200), (2, 2)]


def test_groups_of_similar_length() -> None:
    lengths = [10, 9, 9, 7, 3, 1]
    assert _similar(lengths, int, 0) == [[10], [9, 9], [7], [3], [1]]
    assert _similar(lengths, int, 2) == [[10, 9, 9], [7], [3, 1]]
    assert _similar(lengths, int, 5) == [[10, 9, 9, 7], [3, 1]]
    assert _similar(lengths, int, 4, longest_first=False, weight=lambda _: 2) == [[1, 3], [7, 9], [9, 10]]


@torch.no_grad()
def test_greedy_continuations_are_found() -> None:
    model = MODELS["hybrid"]()
    ids = list(QUESTION)
    for _ in range(3):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    first, second, third = ids[6:]
    choices = [(first, second, third), (first, second), (first, second, third + 1), (first + 1, second, third)]
    scores = scorer(model)([Request(QUESTION, choice) for choice in choices])
    assert [score.is_greedy for score in scores] == [True, True, False, False]


def test_equal_requests_are_computed_once_and_all_counted() -> None:
    model = llama()
    score, done = scorer(model), []
    seen = shapes(model)
    scores = score([Request((1, 2), (3,))] * 3, done.append)
    assert seen == [(1, 2)]
    assert done == [3]
    assert scores[0] == scores[2]


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_size_is_kept(size: int) -> None:
    model = MODELS["hybrid"]()
    score = scorer(model, size)
    wanted = scorer(model)(REQUESTS)
    assert score.shares_state
    seen = shapes(model)
    found = score(REQUESTS)
    assert max(rows for rows, _ in seen) == size
    assert [s.loglikelihood for s in found] == pytest.approx([s.loglikelihood for s in wanted], abs=1e-5)


def forgetful(model: PreTrainedModel) -> PreTrainedModel:
    """A model that starts anew when several tokens follow, as some recurrent models of transformers did."""
    forward = model.forward

    def start_anew(input_ids: Tensor, cache: Any = None, **arguments: Any) -> Any:
        return forward(input_ids=input_ids, cache=cache if input_ids.shape[1] == 1 else None, **arguments)

    model.forward = start_anew  # type: ignore[method-assign]
    return model


def cacheless(model: PreTrainedModel) -> PreTrainedModel:
    forward = model.forward
    model.forward = lambda input_ids, use_cache=None: forward(input_ids=input_ids, use_cache=False)  # type: ignore[method-assign]
    return model


def mamba() -> PreTrainedModel:
    torch.manual_seed(3)
    return MambaForCausalLM(
        MambaConfig(vocab_size=320, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.2)
    ).eval()


@pytest.mark.parametrize("change", [forgetful, cacheless])
@torch.no_grad()
def test_a_state_that_cannot_be_shared_is_not(change: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
    plain = llama()
    model = change(copy.deepcopy(plain))
    score = scorer(model)
    assert not score.shares_state
    wanted = [by_hand(plain, item) for item in REQUESTS]
    assert [s.loglikelihood for s in score(REQUESTS)] == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
def test_recurrent_models_of_transformers_are_right_either_way() -> None:
    model = mamba()
    wanted = [by_hand(model, item) for item in REQUESTS]
    assert [s.loglikelihood for s in scorer(model)(REQUESTS)] == pytest.approx(wanted, abs=1e-5)


def test_cut_from_the_left() -> None:
    """The model reads at most max_length tokens; the last token of the continuation is not read."""
    assert request([1, 2, 3, 4], [5, 6], 6).inputs == (1, 2, 3, 4, 5)
    assert request([1, 2, 3, 4], [5, 6], 5).inputs == (1, 2, 3, 4, 5)
    assert request([1, 2, 3, 4], [5, 6], 4) == Request((2, 3, 4), (5, 6))
    assert request([1, 2, 3, 4], [5, 6], 2) == Request((4,), (5, 6))
    with pytest.raises(OptionError, match="has 2 tokens, more than max_length = 1"):
        request([1, 2, 3, 4], [5, 6], 1)
    with pytest.raises(DataError, match="no tokens"):
        request([1, 2], [], 4)


def test_unknown_tokens() -> None:
    with pytest.raises(OptionError, match="token 320 but the model knows 320"):
        scorer(llama())([Request((1, 320), (2,))])
