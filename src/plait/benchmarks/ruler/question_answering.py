"""Question answering (``qa_1`` on SQuAD, ``qa_2`` on HotpotQA): the right documents among as many others as fit.

Hsieh et al., "RULER" (2404.06654), section 3.4.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Prompt
from plait.benchmarks.ruler.base import SHUFFLE_SEED, Draft, Ruler
from plait.benchmarks.ruler.questions import QuestionSet, hotpotqa, squad
from plait.benchmarks.ruler.scoring import string_match_all, string_match_part
from plait.errors import OptionError

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
_QUESTION = (
    f"{_INSTRUCTION}\n\nThe following are given documents.\n\n{{context}}\n\n{_INSTRUCTION}\n\nQuestion: {{query}}"
)
_PREFIX = " Answer:"


@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Ruler):
    """The common part of both sets; sample i asks question i.

    The haystack's size counts documents: those that come with the question, then other paragraphs of its article, then
    any others. Where there are more than the set has, all are repeated in their order.

    Args:
        questions: path of a JSON file, or ``hf:NAME[:CONFIG]``; needed.

    Raises:
        OptionError: no questions.
    """

    questions: str = ""

    metric: ClassVar[str] = "string_match_part"
    new_tokens: ClassVar[int] = 32
    form: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.questions:
            raise OptionError(
                f"{self.name} asks questions of {self.form}: set questions to its JSON file, or to hf:NAME[:CONFIG]."
            )

    @property
    @abstractmethod
    def source(self) -> QuestionSet:
        """All questions and documents."""

    def __len__(self) -> int:
        return min(self.samples, len(self.source.questions))

    @property
    def increment(self) -> int:
        return 10

    def smallest(self, index: int) -> int:
        """The documents that come with the question."""
        return len(self.source.questions[index].given)

    def draft(self, index: int, size: int, tokenizer: PreTrainedTokenizerBase) -> Draft:
        questions, documents = self.source
        question = questions[index]
        rng = self.stream(index)
        if size < len(documents):
            others = size - len(question.given)
            if others > len(question.related):
                taken = {*question.given, *question.related}
                left = [place for place in range(len(documents)) if place not in taken]
                chosen = [*question.related, *rng.sample(left, min(len(left), others - len(question.related)))]
            else:
                chosen = rng.sample(question.related, others)
            shown = [documents[place] for place in (*question.given, *chosen)]
        else:
            shown = list((documents * -(-size // len(documents)))[:size])
        random.Random(SHUFFLE_SEED).shuffle(shown)
        context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(shown, 1))
        return Draft(_QUESTION.format(context=context, query=question.text), _PREFIX, question.answers)

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains any reference; with ``lm_eval`` the share of the references."""
        metric = string_match_all if self.compat == "lm_eval" else string_match_part
        return metric(prediction, prompt.references)


class QA1(QuestionAnswering):
    """SQuAD, of form 1.1 or 2.0; RULER takes the development set of 2.0."""

    name = "qa_1"
    form = "SQuAD"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"questions": ("squad.json", "xquad.en.json")}

    @property
    def source(self) -> QuestionSet:
        return squad(self.questions)


class QA2(QuestionAnswering):
    """HotpotQA, development set with distractors."""

    name = "qa_2"
    form = "HotpotQA"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"questions": ("hotpotqa.json",)}

    @property
    def source(self) -> QuestionSet:
        return hotpotqa(self.questions)
