"""Greedy answers of any causal language model of transformers, exact: no row is ever filled up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from plait.benchmarks.base import Prompt
from plait.evaluation.batching import Batches


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    batches: Batches,
    advance: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """What the model says to each prompt, up to its ``stop``, its end of text or its ``max_new_tokens``.

    Prompts of the same number of tokens go through the model together, so no position is masked and an answer does
    not depend on its neighbours.

    Args:
        model: in evaluation mode.
        tokenizer: of the model; its special tokens are added as it is set up to.
        prompts: in any order.
        batches: rows at a time.
        advance: told how many prompts have been answered since the last call.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    ids = [tokenizer(prompt.text)["input_ids"] for prompt in prompts]
    for index, prompt in enumerate(prompts):
        groups[len(ids[index]), prompt.max_new_tokens, prompt.stop].append(index)
    replies: dict[int, str] = {}
    for (length, new, stop), members in sorted(groups.items(), reverse=True):  # the largest first: memory fails early

        def answer(batch: Sequence[int], new: int = new, stop: tuple[str, ...] = stop) -> list[str]:
            said = _generate(model, tokenizer, torch.tensor([ids[index] for index in batch]), new, stop)
            advance(len(batch))
            return said

        replies |= dict(zip(members, batches.run(answer, members, length + new), strict=True))
    return [replies[index] for index in range(len(prompts))]


@torch.no_grad()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Tensor, new: int, stop: tuple[str, ...]
) -> list[str]:
    ids = ids.to(model.device)
    criteria = StoppingCriteriaList([_Said(tokenizer, ids.shape[1], stop)] if stop else [])
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output: Any = model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
        stopping_criteria=criteria,
    )
    texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return [cut(text, stop) for text in texts]


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` before the first of the ``stop`` strings."""
    for end in stop:
        text = text.split(end, 1)[0]
    return text


class _Said(StoppingCriteria):
    """True for rows whose answer holds one of the stop strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, start: int, stop: tuple[str, ...]) -> None:
        self.tokenizer, self.start, self.stop = tokenizer, start, stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :])
        done = [any(end in text for end in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)
