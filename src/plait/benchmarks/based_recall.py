"""The recall suite of Based: a long document, then the name of a field; the model goes on with its value.

Arora et al., "Simple linear attention language models balance the recall-throughput tradeoff" (2402.18668, section 6):
FDA (reports on medical devices), SWDE (web pages) and SQuAD rewritten as completion, each from rows of ``text``, which
ends where the value must follow, and ``value``. Generation, cutting and score are those of the authors' evaluation:
48 tokens until a line ends, prompts cut from the left so that prompt and answer have 2048 tokens, and an answer is
right if it contains the value. :class:`XQuADCompletion` asks questions of a file in SQuAD's format, in its own frame.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import last_tokens, token_count
from plait.benchmarks.rows import Question, chosen_rows, read_rows, read_squad
from plait.errors import DataError

NEW_TOKENS = 48
STOP = ("\n",)


def contains(prediction: str, values: Sequence[str]) -> float:
    """1 if the answer contains one of the values, in whatever case."""
    return float(any(re.search(re.escape(value), prediction, re.IGNORECASE) for value in values))


@dataclass(frozen=True, kw_only=True)
class BasedRecall(Benchmark):
    """Options of FDA, SWDE and SQuAD-completion; the fact of a prompt is ``value_in_prompt``, 0 where cutting lost it.

    Args:
        samples: prompts; all rows where there are fewer, else rows drawn by the seed.
        data: jsonl file with the fields ``text`` and ``value``, or name of a data set on the hub, of which the split
            ``validation`` is read; without it the official one.
        length: tokens of prompt and answer; longer documents lose their beginning.

    Raises:
        DataError: ``length`` leaves no room for a prompt.
    """

    samples: int = 5000
    data: str | None = None
    length: int = 2048
    metric: ClassVar[str] = "contains"
    official: ClassVar[str]

    def __post_init__(self) -> None:
        _check_length(type(self).__name__, self.length)

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        rows = self._rows
        row = rows[chosen_rows(len(rows), self.samples, self.seed)[index]]
        text = last_tokens(tokenizer, row["text"].strip(), self.length - NEW_TOKENS)
        value = row["value"].strip()
        return Prompt(
            text=text,
            references=(value,),
            max_new_tokens=NEW_TOKENS,
            stop=STOP,
            facts={"value_in_prompt": int(contains(text, [value]))},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains the value, in whatever case."""
        return contains(prediction, prompt.references)

    def __len__(self) -> int:
        return min(self.samples, len(self._rows))

    @property
    def _rows(self) -> Sequence[dict[str, str]]:
        return read_rows(self.data or self.official, ("text", "value"), "validation")  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class FDA(BasedRecall):
    """Fields of reports on medical devices: 100 documents, 16 fields. Options: :class:`BasedRecall`."""

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("fda.jsonl",)}
    official: ClassVar[str] = "hazyresearch/based-fda"


@dataclass(frozen=True, kw_only=True)
class SWDE(BasedRecall):
    """Fields of web pages: 8 film and 5 university sites. Options: :class:`BasedRecall`."""

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("swde.jsonl",)}
    official: ClassVar[str] = "hazyresearch/based-swde-v2"


@dataclass(frozen=True, kw_only=True)
class SquadCompletion(BasedRecall):
    """SQuAD with each question rewritten as the start of its answer. Options: :class:`BasedRecall`."""

    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("squad_completion.jsonl",)}
    official: ClassVar[str] = "hazyresearch/based-squad"


@dataclass(frozen=True, kw_only=True)
class XQuADCompletion(Benchmark):
    """Questions on paragraphs, from a file in SQuAD's format such as XQuAD's (1910.11856).

    The frame is plait's own, since no rewritten questions exist for these files: the paragraph, an empty line,
    ``Question: `` and the question, and on a new line ``Answer:``. Scores are therefore not those of SQuAD-completion.

    Args:
        samples: prompts; all questions with an answer where there are fewer, else questions drawn by the seed.
        questions: the file.
        length: tokens of prompt and answer; longer paragraphs lose their beginning.

    Raises:
        DataError: ``length`` leaves no room for a prompt, or a file that cannot be read.
    """

    samples: int = 5000
    questions: str
    length: int = 2048
    metric: ClassVar[str] = "contains"
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"questions": ("squad.json", "xquad.en.json")}

    def __post_init__(self) -> None:
        _check_length("xquad_completion", self.length)
        read_squad(self.questions)

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> Prompt:
        questions: Sequence[Question] = read_squad(self.questions)
        one = questions[chosen_rows(len(questions), self.samples, self.seed)[index]]
        end = f"\n\nQuestion: {one.question.strip()}\nAnswer:"
        room = self.length - NEW_TOKENS - token_count(tokenizer, end)
        if room < 1:
            raise DataError(
                f"xquad_completion: length={self.length} is too short for the question {one.question.strip()!r}; use "
                f"length >= {self.length - room + 1}."
            )
        context = last_tokens(tokenizer, one.context.strip(), room)
        return Prompt(
            text=context + end,
            references=one.answers,
            max_new_tokens=NEW_TOKENS,
            stop=STOP,
            facts={"value_in_prompt": int(contains(context, one.answers))},
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """1 if the answer contains one of the right ones, in whatever case."""
        return contains(prediction, prompt.references)

    def __len__(self) -> int:
        return min(self.samples, len(read_squad(self.questions)))


def _check_length(name: str, length: int) -> None:
    if length <= NEW_TOKENS:
        raise DataError(f"{name}: length={length} must hold a prompt and {NEW_TOKENS} new tokens; use 2048.")
