"""The contract of a benchmark in words: prompts made from a seed, each with its references and its score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.options import Options


@dataclass(frozen=True)
class Prompt:
    """One question.

    Args:
        text: what the model goes on from.
        references: right answers; what several mean is the benchmark's metric.
        max_new_tokens: tokens that the model may say.
        stop: the answer ends before the first of these.
        facts: what results are grouped by, such as the needle's depth.
    """

    text: str
    references: tuple[str, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    facts: Mapping[str, int | float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Benchmark(Options, ABC):
    """A published set of prompts with the way to score answers.

    A subclass is a frozen dataclass of its options, checked in ``__post_init__``.

    Args:
        samples: number of prompts; where a file holds fewer, so many.
        seed: of the prompts.

    Attributes:
        metric: the score's name, as the benchmark's authors call it.
        room_for_answer: an option ``length`` counts the tokens of the answer too, not those of the prompt alone.
        files: option that names a file or a folder -> where it lies in a data folder; the first that exists counts.
    """

    samples: int = 500
    seed: int = 42
    metric: ClassVar[str]
    room_for_answer: ClassVar[bool] = True
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        """Prompt ``index``, which depends on the options, the tokenizer and ``index`` alone.

        Args:
            index: in ``range(samples)``.
            tokenizer: of the model; length budgets count its tokens.

        Raises:
            DataError: the length is too short for the template; the message says what fits.
        """

    @abstractmethod
    def score(self, prediction: str, prompt: Prompt) -> float:
        """Score of one answer, 0 to 1; the benchmark's score is the mean over prompts.

        Args:
            prediction: what the model said, already cut at the prompt's ``stop``.
            prompt: what it was asked.
        """

    def __len__(self) -> int:
        """Prompts that there are: ``samples``, or those of the file where it holds fewer."""
        return self.samples
