"""Log-likelihoods of continuations, with contexts computed once.

Continuations of one context, such as the choices of a question, go on from copies of its cache or recurrent state. A
state that is kept has read nothing but its own tokens: contexts of a batch are read up to the length of the shortest.
Rows whose state is thrown away may be filled up on the right, where a causal model does not look.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from plait.errors import DataError, OptionError
from plait.evaluation.batching import Batches
from plait.models.cache import CACHE_NAME, PlaitCache

Tokens = tuple[int, ...]
Item = TypeVar("Item")

#: A pass through the model costs about as much as so many tokens more; rows of similar length share one up to there.
PASS = 128

_NOTHING = -1  # stands where a row has no target


class Score(NamedTuple):
    """Sum of the continuation's log probabilities in nats, and whether each of its tokens is the likeliest."""

    loglikelihood: float
    is_greedy: bool


@dataclass(frozen=True)
class Request:
    """A continuation to be scored after a prefix; both hold at least one token."""

    prefix: Tokens
    continuation: Tokens

    @property
    def inputs(self) -> Tokens:
        """What the model reads: the last token is only predicted."""
        return self.prefix + self.continuation[:-1]


#: The requests that one row of inputs answers.
Rows = dict[Tokens, list[Request]]


def request(context: Sequence[int], continuation: Sequence[int], max_length: int) -> Request:
    """A request whose context is cut from the left, so that the model reads at most ``max_length`` tokens.

    Raises:
        DataError: a continuation without tokens.
        OptionError: a continuation that alone is longer than ``max_length``.
    """
    if not continuation:
        raise DataError("A continuation has no tokens, so there is nothing to score: an answer or choice is empty.")
    if len(continuation) > max_length:
        raise OptionError(
            f"A continuation has {len(continuation)} tokens, more than max_length = {max_length}: give a larger one."
        )
    tokens = tuple(context) + tuple(continuation)
    tokens = tokens[-(max_length + 1) :]
    return Request(tokens[: -len(continuation)], tokens[-len(continuation) :])


class Scorer:
    """Scores requests with one model.

    Args:
        model: a causal language model, in evaluation mode.
        batches: rows per forward pass.
    """

    def __init__(self, model: PreTrainedModel, batches: Batches) -> None:
        self.model = model
        self.batches = batches
        arguments = inspect.signature(model.forward).parameters
        self._keeps_logits = "logits_to_keep" in arguments
        self._cache_name = CACHE_NAME if CACHE_NAME in arguments else "past_key_values"

    @torch.no_grad()
    def __call__(self, requests: Sequence[Request], scored: Callable[[int], None] | None = None) -> list[Score]:
        """The score of each request, in their order.

        Args:
            requests: in any order; equal ones are computed once.
            scored: called with the number of requests that have just been scored.

        Raises:
            OptionError: a token that the model does not know.
        """
        self._check_vocabulary(requests)
        counts = Counter(requests)
        contexts: dict[Tokens, Rows] = defaultdict(lambda: defaultdict(list))
        for item in counts:
            contexts[item.prefix][item.inputs].append(item)
        shared = {prefix: rows for prefix, rows in contexts.items() if len(rows) > 1}
        if shared and not self.shares_state:
            shared = {}
        whole: Rows = defaultdict(list)
        for prefix, rows in contexts.items():
            if prefix not in shared:
                for inputs, items in rows.items():
                    whole[inputs] += items
        results: dict[Request, Score] = {}
        for scores in chain(self._score_shared(shared), self._score_whole(whole)):
            results |= scores
            if scored is not None:
                scored(sum(counts[item] for item in scores))
        return [results[item] for item in requests]

    @cached_property
    @torch.no_grad()
    def shares_state(self) -> bool:
        """Whether continuations may go on from a copy of the model's cache; tried once, on a few tokens.

        Some models return no cache, one that cannot be copied, or forget a recurrent state when more than one token
        follows. Their requests are computed whole, in batches of equal length.
        """
        ids = (torch.arange(24, device=self.model.device).view(2, 12) * 7) % self._vocab_size
        swapped = torch.tensor([1, 0], device=ids.device)
        whole, _ = self._forward(ids[:, :11])
        alone, _ = self._forward(ids[:, 8:])
        try:
            _, cache = self._forward(ids[:, :8], keep_cache=True)
            logits, _ = self._forward(ids[swapped, 8:], cache=_rows_of(cache, swapped))
        except torch.OutOfMemoryError:  # says nothing about the cache
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        wanted = whole[swapped, 8:].float()
        error = (logits[:, :3].float() - wanted).abs().max()  # the last token is one that fills up
        forgetting = (alone[swapped, :3].float() - wanted).abs().max()
        tolerance = 0.02 if whole.dtype in (torch.float32, torch.float64) else 0.1
        return bool(error <= tolerance * forgetting + 1e-6)

    def _score_whole(self, rows: Rows) -> Iterator[dict[Request, Score]]:
        """Each row of inputs in one pass."""

        def work(batch: Sequence[Tokens]) -> list[dict[Request, Score]]:
            longest = max(len(inputs) for inputs in batch)
            start = min(len(item.prefix) - 1 for inputs in batch for item in rows[inputs])
            logits, _ = self._forward(self._tensor(batch, longest), logits_to_keep=longest - start)
            return _scores(logits, [(len(inputs) - start, rows[inputs]) for inputs in batch])

        for group in _similar(rows, len, self._allowance):
            yield _merged(self.batches.run(work, group, len(group[0])))

    def _score_shared(self, contexts: Mapping[Tokens, Rows]) -> Iterator[dict[Request, Score]]:
        """Each prefix once; its continuations go on from copies of its state."""

        def work(batch: Sequence[Tokens]) -> list[dict[Request, Score]]:
            read = min(len(prefix) for prefix in batch)
            ids = self._tensor([prefix[:read] for prefix in batch], read)
            last, cache = self._forward(ids, logits_to_keep=1, keep_cache=True)
            scores: list[dict[Request, Score]] = [{} for _ in batch]

            def go_on(part: Sequence[tuple[int, Tokens]]) -> Sequence[tuple[int, Tokens]]:
                rows = torch.tensor([row for row, _ in part], device=last.device)
                logits = last[rows]
                longest = max(len(inputs) for _, inputs in part) - read
                if longest:
                    ids = self._tensor([inputs[read:] for _, inputs in part], longest)
                    rest, _ = self._forward(ids, cache=_rows_of(cache, rows))
                    logits = torch.cat([logits, rest], dim=1)
                ends = [(1 + len(inputs) - read, contexts[batch[row]][inputs]) for row, inputs in part]
                for (row, _), found in zip(part, _scores(logits, ends), strict=True):
                    scores[row] |= found
                return part

            tails = [(row, inputs) for row, prefix in enumerate(batch) for inputs in contexts[prefix]]
            for group in _similar(tails, lambda tail: len(tail[1]), self._allowance):
                self.batches.run(go_on, group, len(group[0][1]))
            return scores

        for group in _similar(
            contexts, len, self._allowance, longest_first=False, weight=lambda prefix: len(contexts[prefix]) - 1
        ):
            longest = max(len(inputs) for prefix in group for inputs in contexts[prefix])
            yield _merged(self.batches.run(work, group, longest))

    @property
    def _allowance(self) -> int:
        return PASS if self.shares_state else 0

    def _forward(
        self, ids: Tensor, *, logits_to_keep: int = 0, cache: Any = None, keep_cache: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits ``(B, T, vocab)``, of the last positions only where so many are asked for, and the cache."""
        arguments: dict[str, Any] = {"input_ids": ids, "use_cache": keep_cache or cache is not None}
        if cache is not None:
            arguments[self._cache_name] = cache
        if logits_to_keep and self._keeps_logits:
            arguments["logits_to_keep"] = logits_to_keep
        output = self.model(**arguments)
        logits = output.logits
        if logits_to_keep and not self._keeps_logits:
            logits = logits[:, -logits_to_keep:]
        cache = getattr(output, self._cache_name, None) if keep_cache else None
        return logits, cache

    def _tensor(self, rows: Sequence[Tokens], length: int) -> Tensor:
        """Ids ``(B, length)``, filled up on the right."""
        filled = [row + (0,) * (length - len(row)) for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=self.model.device)

    @property
    def _vocab_size(self) -> int:
        embedding: Any = self.model.get_input_embeddings()
        return int(embedding.weight.shape[0])

    def _check_vocabulary(self, requests: Sequence[Request]) -> None:
        largest = max((token for item in requests for token in item.prefix + item.continuation), default=0)
        if largest >= self._vocab_size:
            raise OptionError(
                f"The tokenizer gives token {largest} but the model knows {self._vocab_size} tokens; use the tokenizer "
                "that the model was trained with."
            )


def _rows_of(cache: Any, rows: Tensor) -> Cache:
    """A copy of a cache that holds the given rows."""
    if not isinstance(cache, Cache):
        raise TypeError(f"{type(cache).__name__} is no cache of transformers")
    twin: Cache = cache.fork(1) if isinstance(cache, PlaitCache) else copy.deepcopy(cache)
    twin.reorder_cache(rows)  # type: ignore[arg-type]
    return twin


def _similar(
    items: Iterable[Item],
    length: Callable[[Any], int],
    allowance: int,
    *,
    longest_first: bool = True,
    weight: Callable[[Any], int] = lambda item: 1,
) -> list[list[Item]]:
    """Groups of similar length: their distances to the first, times weight, add up to at most ``allowance``."""
    groups: list[list[Item]] = []
    spent = 0
    for item in sorted(items, key=length, reverse=longest_first):
        if groups:
            spent += abs(length(item) - length(groups[-1][0])) * weight(item)
        if not groups or spent > allowance:
            groups.append([])
            spent = 0
        groups[-1].append(item)
    return groups


def _merged(parts: Iterable[dict[Request, Score]]) -> dict[Request, Score]:
    return {item: score for part in parts for item, score in part.items()}


def _scores(logits: Tensor, rows: Sequence[tuple[int, Sequence[Request]]]) -> list[dict[Request, Score]]:
    """Scores of the requests of each row.

    Args:
        logits: ``(B, T, vocab)``.
        rows: for each row the positions up to which it counts, and the requests whose continuations end there.
    """
    items = [(row, end, item) for row, (end, requests) in enumerate(rows) for item in requests]
    length = max(len(item.continuation) for _, _, item in items)
    row = torch.tensor([row for row, _, _ in items], device=logits.device)[:, None]
    position = torch.tensor([range(end - length, end) for _, end, _ in items], device=logits.device).clamp(min=0)
    targets = torch.tensor(
        [(_NOTHING,) * (length - len(item.continuation)) + item.continuation for *_, item in items],
        device=logits.device,
    )
    real = targets != _NOTHING
    logits = logits.float()
    chosen = logits[row, position, targets.clamp(min=0)] - logits.logsumexp(-1)[row, position]
    sums = torch.where(real, chosen, 0.0).sum(-1).tolist()
    greedy = ((logits.argmax(-1)[row, position] == targets) | ~real).all(-1).tolist()
    scores: list[dict[Request, Score]] = [{} for _ in rows]
    for (index, _, item), total, likeliest in zip(items, sums, greedy, strict=True):
        scores[index][item] = Score(total, likeliest)
    return scores
