"""What the thirteen tasks share: a length to fill, the frame around a question, samples from their own streams."""

from __future__ import annotations

import dataclasses
import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, Self

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import largest, token_count
from plait.benchmarks.ruler.scoring import string_match_all
from plait.errors import DataError, OptionError, nearest

SHUFFLE_SEED = 42
_SCALED_DOWN = 2048  # below this length the haystack shrinks one by one
_COMPATS = ("nvidia", "lm_eval")


@dataclass(frozen=True)
class Draft:
    """One sample before it is framed.

    Args:
        question: all of the user's turn.
        prefix: begins the answer; the model goes on from it.
        references: right answers.
        example: another question and the right answer to it, shown before.
        facts: what results may be grouped by.
    """

    question: str
    prefix: str
    references: tuple[str, ...]
    example: tuple[str, str] | None = None
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ruler(Benchmark):
    """Options of all tasks of RULER.

    A task has one haystack size for all samples, the largest at which sample 0 fits; a sample that is too long with it
    takes a smaller one. Sample i is drawn from its own stream, made from seed, task and i, where NVIDIA draws all
    samples one after another from a single stream: the distribution is the same, and any sample can be made alone.
    Needles, word lists and documents are shuffled with the fixed seed 42 in every sample, as NVIDIA does.

    Args:
        length: tokens of the prompt and of the answer together, without tokens that a tokenizer adds of itself.
        compat: ``nvidia``, or ``lm_eval`` for three ways in which lm-eval's RULER differs: question answering scores
            the share of the references, ``cwe`` shows no example, ``vt`` has the typing error of its prompt. Scores of
            the two are not comparable.
        chat: put the question into the tokenizer's chat template; the answer's prefix follows after it. Such a prompt
            spells its special tokens.
        template: a chat template (Jinja) instead of the tokenizer's own.

    Raises:
        OptionError: a value out of range.
    """

    length: int = 4096
    compat: Literal["nvidia", "lm_eval"] = "nvidia"
    chat: bool = False
    template: str = ""

    metric: ClassVar[str] = "string_match_all"
    name: ClassVar[str]
    new_tokens: ClassVar[int]

    def __post_init__(self) -> None:
        if self.length < 1 or self.samples < 1:
            raise OptionError(f"{self.name}: length={self.length} and samples={self.samples} must be at least 1.")
        if self.compat not in _COMPATS:
            raise OptionError(f"{self.name} has no compat {self.compat!r}.{nearest(self.compat, _COMPATS)}")
        if self.template and not self.chat:
            raise OptionError(f"{self.name}: template is the chat template's; set chat to true or leave it out.")

    @abstractmethod
    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        """Sample ``index`` with a haystack of ``size``."""

    @abstractmethod
    def smallest(self, index: int) -> int:
        """The smallest size at which the sample is a question at all."""

    @property
    @abstractmethod
    def increment(self) -> int:
        """NVIDIA's ``incremental``: what a haystack that is too large loses at a time."""

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Prompt ``index``; its facts name the length, the haystack's size and the tokens of the prompt.

        Raises:
            DataError: the smallest haystack is too long; the message names the length at which all samples fit.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: sample {index} of {len(self)}")
        smallest = self.smallest(index)
        size = max(smallest, _shared_size(self, tokenizer))
        step = 1 if self.length < _SCALED_DOWN else self.increment
        while True:
            draft = self.draft(index, size, tokenizer)
            text = self.text(draft, tokenizer)
            tokens = self.count(text, tokenizer)
            if tokens + self.new_tokens <= self.length:
                facts = {"length": self.length, "size": size, "tokens": tokens, **draft.facts}
                return Prompt(text, draft.references, self.new_tokens, facts=facts)
            if size == smallest:
                raise DataError(
                    f"{self.name}: length={self.length} is too short: the smallest prompt has {tokens} tokens and the "
                    f"answer {self.new_tokens}; use length >= {self._shortest(tokenizer).length}."
                )
            size -= step if size - step >= smallest else 1  # NVIDIA's loop would never end here

    def score(self, prediction: str, prompt: Prompt) -> float:
        """Share of the references that the answer contains."""
        return string_match_all(prediction, prompt.references)

    def stream(self, part: int | str) -> random.Random:
        """The random stream of one sample, or of another part."""
        return random.Random(f"RULER {self.name}, seed {self.seed}, {part}")

    def text(self, draft: Draft, tokenizer: PreTrainedTokenizerBase) -> str:
        """The whole prompt, up to the answer's prefix.

        Raises:
            DataError: ``chat`` with a tokenizer that has no chat template.
        """
        if not self.chat:
            question = f"{draft.question}{draft.prefix}"
            return f"{draft.example[0]}{draft.prefix} {draft.example[1]}\n{question}" if draft.example else question
        template = self.template or tokenizer.chat_template
        if not template:
            raise DataError(f"{self.name}: the tokenizer has no chat template; set template, or chat to false.")
        turns = [{"role": "user", "content": draft.question}]
        if draft.example:
            question, answer = draft.example
            turns.insert(0, {"role": "assistant", "content": f"{draft.prefix.strip()} {answer}"})
            turns.insert(0, {"role": "user", "content": question})
        framed = str(
            tokenizer.apply_chat_template(turns, chat_template=template, add_generation_prompt=True, tokenize=False)
        )
        bos = tokenizer.bos_token
        if bos and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
            framed = framed.removeprefix(bos)  # encoding adds it again
        return f"{framed}{draft.prefix}"

    def count(self, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of a prompt: without those that encoding adds, unless a chat template is meant to have them."""
        return len(tokenizer(text, verbose=False)["input_ids"]) if self.chat else token_count(tokenizer, text)

    def largest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        """The haystack's size that all samples start from."""
        smallest = self.smallest(0)
        more = largest(lambda more: self.tokens(0, smallest + more, tokenizer), self.length - self.new_tokens)
        return smallest + max(0, more)

    def tokens(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of the prompt of this size, the answer not counted."""
        return self.count(self.text(self.draft(index, size, tokenizer), tokenizer), tokenizer)

    def _shortest(self, tokenizer: PreTrainedTokenizerBase) -> Self:
        """This task with the smallest length at which each sample fits; counts may depend on the length itself."""
        task = self
        while True:
            most = max(task.tokens(index, task.smallest(index), tokenizer) for index in range(len(task)))
            if most + self.new_tokens <= task.length:
                return task
            task = dataclasses.replace(task, length=most + self.new_tokens)


@lru_cache(maxsize=64)
def _shared_size(task: Ruler, tokenizer: PreTrainedTokenizerBase) -> int:
    return task.largest(tokenizer)
