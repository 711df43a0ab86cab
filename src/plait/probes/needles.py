"""Questions whose answer stands at a known place of the prompt: what retrieval heads are found with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from plait.benchmarks.needle import ANSWER, QUESTION, Needle
from plait.data.tasks.niah import NEEDLE, NeedleInHaystack
from plait.errors import OptionError
from plait.models.cache import CACHE_NAME

#: Share of a span's tokens that the answer's own tokens must cover (Wu et al., detection code).
OVERLAP = 0.9


@dataclass(frozen=True)
class NeedleRun:
    """One question.

    Args:
        prompt: ``(T,)`` ids; the answer follows.
        answer: ids of the right answer.
        span: first position of the answer's tokens in the prompt, and the one behind the last.
        stop: ids that end an answer.
    """

    prompt: Tensor
    answer: tuple[int, ...]
    span: tuple[int, int]
    stop: tuple[int, ...] = ()


def find_span(prompt: Sequence[int], answer: Sequence[int]) -> tuple[int, int] | None:
    """Where the answer's tokens stand: the window of its length whose set of tokens overlaps most, over 0.9; of several
    the one with most tokens in their places.

    The paper's code takes the first window over 0.9, which for an answer of more than ten tokens begins too early.

    Args:
        prompt, answer: ids.

    Returns:
        First position and the one behind the last; None where there is no such window.
    """
    wanted, size = set(answer), len(answer)
    overlaps = [
        len(wanted & set(prompt[start : start + size])) / len(wanted) for start in range(len(prompt) - size + 1)
    ]
    best = max(overlaps, default=0.0)
    if best <= OVERLAP:
        return None

    def in_place(start: int) -> int:
        return sum(map(eq, answer, prompt[start : start + size]))

    start = max((i for i, overlap in enumerate(overlaps) if overlap == best), key=in_place)
    return start, start + size


def task_runs(task: NeedleInHaystack, count: int, seed: int) -> list[NeedleRun]:
    """Rows of the task ``niah`` as questions, for models that were trained on token ids.

    Args:
        task: with one query and one value.
        count: rows.
        seed: of the rows.

    Raises:
        OptionError: several queries or values, which have no single place.
    """
    if task.queries != 1 or task.values != 1:
        raise OptionError(f"niah: queries={task.queries}, values={task.values}; retrieval heads need one of each.")
    ids, _ = task.generate(np.random.default_rng([seed, 0x6E656564]), count)
    key, value = task.key_tokens, task.value_tokens
    runs = []
    for row in ids.tolist():
        end = len(row) - value
        asked = row[end - key : end]
        place = next(i + 1 + key for i in range(end - key) if row[i] == NEEDLE and row[i + 1 : i + 1 + key] == asked)
        answer = tuple(row[place : place + value])
        runs.append(NeedleRun(torch.tensor(row[:end]), answer, (place, place + value)))
    return runs


def text_runs(
    tokenizer: PreTrainedTokenizerBase, haystack: str | Path, lengths: Sequence[int], depths: int, seed: int = 0
) -> Iterator[NeedleRun]:
    """A sentence in a long text at each length and depth, for models that know English.

    One needle of Kamradt's; Wu et al. use three of their own, in three collections. Prompts in which the answer's
    tokens cannot be found are left out.

    Args:
        tokenizer: of the model.
        haystack: text file, or folder of txt files.
        lengths: tokens of a prompt.
        depths: evenly spaced, 0 to 100 percent.
        seed: of the haystack's start.

    Raises:
        DataError: a haystack that cannot be read, or a length that is too short.
    """
    answer = tuple(tokenizer.encode(" " + ANSWER, add_special_tokens=False))
    newline = tuple(tokenizer.encode("\n", add_special_tokens=False))[-1:]
    for length in lengths:
        grid = Needle(
            haystack=str(haystack), length=length, shortest=length, lengths=1, depths=depths, samples=depths, seed=seed
        )
        for index in range(depths):
            ids = tokenizer.encode(grid.prompt(index, tokenizer).text)
            question = len(tokenizer.encode(QUESTION, add_special_tokens=False))
            span = find_span(ids[: len(ids) - question], answer)
            if span is not None:
                yield NeedleRun(torch.tensor(ids), answer, span, newline)


def greedy_answer(
    model: nn.Module, run: NeedleRun, limit: int, before_step: Callable[[], None] = lambda: None
) -> list[int]:
    """The model's greedy answer: the prompt but its last token in one pass, then token by token.

    Args:
        model: a decoder.
        run: the question; where it names no stop, as many tokens are said as the right answer has.
        limit: most tokens said.
        before_step: called before each token's pass.
    """
    prompt = run.prompt.to(next(model.parameters()).device)[None]
    cache = None
    if prompt.shape[1] > 1:
        cache = model(input_ids=prompt[:, :-1], use_cache=True)[CACHE_NAME]
    token, said = prompt[:, -1:], list[int]()
    length = limit if run.stop else min(limit, len(run.answer))
    while len(said) < length and not (said and said[-1] in run.stop):
        before_step()
        outputs = model(input_ids=token, use_cache=True, **{CACHE_NAME: cache})
        cache, token = outputs[CACHE_NAME], outputs.logits[:, -1:].argmax(-1)
        said.append(int(token))
    return said


def recall(answer: Sequence[int], said: Sequence[int]) -> float:
    """Share of the answer's tokens that were said, each as often as it was (ROUGE-1 recall on tokens)."""
    wanted, got = Counter(answer), Counter(said)
    return sum(min(count, got[token]) for token, count in wanted.items()) / len(answer)
