"""LongBench: questions, summaries, few-shot tasks and code on long contexts, in English and Chinese.

Bai et al., "LongBench" (2308.14508), as the authors' ``pred.py`` and ``eval.py`` run it: the row goes into the set's
prompt, a prompt that is too long loses its middle, and the score is the best over the right answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from plait.benchmarks.base import Benchmark, Prompt
from plait.benchmarks.lengths import text_of, token_ids, unbroken
from plait.benchmarks.longbench_metrics import METRICS, check_packages
from plait.benchmarks.longbench_sets import EVEN_SETS, SETS, LongBenchSet
from plait.benchmarks.rows import read_rows
from plait.errors import DataError, OptionError, nearest
from plait.files import read_json

FIELDS = ("input", "context", "answers", "all_classes", "length")


@dataclass(frozen=True, kw_only=True)
class LongBenchPrompt(Prompt):
    """A prompt with the classes that its metric may need.

    Args:
        classes: of a classification; none for other sets.
    """

    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LongBench(Benchmark):
    """Options of LongBench.

    The facts of a prompt are its ``dataset`` and, for LongBench-E, the ``words`` of its row (0-4k, 4-8k, 8k+). The
    benchmark's own figure is the mean over sets; the mean over prompts weighs a set by its rows. ``seed`` changes
    nothing.

    Args:
        samples: prompts over all sets, which take turns, each from its first row on.
        data: folder with one jsonl file per set, such as ``hotpotqa.jsonl``: the benchmark's ``data.zip``, unpacked.
        dataset: one of the 21 sets, or of the 13 of LongBench-E (``hotpotqa_e``); without it every one of the 21 that
            the folder holds.
        length: tokens of a prompt that are kept, half from its start and half from its end; leave room for the answer.
        prompts: JSON file with other prompts by set, as the benchmark's ``config/dataset2prompt.json``.

    Raises:
        OptionError: an unknown set, or a package that a metric needs and that is not installed.
        DataError: files that are not there or have other fields.
    """

    samples: int = 4750
    data: str
    dataset: str | None = None
    length: int = 31_500
    prompts: str | None = None
    room_for_answer: ClassVar[bool] = False
    files: ClassVar[Mapping[str, tuple[str, ...]]] = {"data": ("longbench",)}
    metric: ClassVar[str] = "score"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise DataError(f"longbench: length={self.length} must be at least 2.")
        for name in self.datasets:
            check_packages(_set(name).metric)

    @property
    def datasets(self) -> Sequence[str]:
        """Names of the sets that are asked.

        Raises:
            OptionError: an unknown set.
            DataError: a folder without the set, or without any.
        """
        folder = Path(self.data).expanduser()
        if self.dataset is not None:
            _set(self.dataset)
        wanted = list(SETS) if self.dataset is None else [self.dataset]
        found = [name for name in wanted if (folder / f"{name}.jsonl").is_file()]
        if not found:
            missing = "any set of LongBench" if self.dataset is None else f"{self.dataset}.jsonl"
            raise DataError(
                f"longbench: {self.data} does not hold {missing}; unpack there data.zip of THUDM/LongBench on the hub."
            )
        return found

    def prompt(self, index: int, tokenizer: PreTrainedTokenizerBase) -> LongBenchPrompt:
        name, place = _turns(tuple((name, len(self._rows(name))) for name in self.datasets))[index]
        row = self._rows(name)[place]
        text = self._template(name).format(**row)
        facts = {"dataset": name}
        if name.endswith("_e"):
            facts["words"] = "0-4k" if row["length"] < 4000 else "4-8k" if row["length"] < 8000 else "8k+"
        return LongBenchPrompt(
            text=without_middle(tokenizer, text, self.length),
            references=tuple(row["answers"]),
            max_new_tokens=_set(name).max_new_tokens,
            facts=facts,
            classes=tuple(row["all_classes"] or ()),
        )

    def score(self, prediction: str, prompt: Prompt) -> float:
        """The metric of the prompt's set, the best over the right answers."""
        assert isinstance(prompt, LongBenchPrompt)
        asked = _set(str(prompt.facts["dataset"]))
        if asked.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        metric = METRICS[asked.metric]
        return max((metric(prediction, answer, prompt.classes) for answer in prompt.references), default=0.0)

    def __len__(self) -> int:
        return min(self.samples, sum(len(self._rows(name)) for name in self.datasets))

    def _rows(self, name: str) -> Sequence[Mapping[str, Any]]:
        return read_rows(str(Path(self.data).expanduser() / f"{name}.jsonl"), FIELDS, "test")

    def _template(self, name: str) -> str:
        return _set(name).prompt if self.prompts is None else _templates(self.prompts, name.removesuffix("_e"))


def without_middle(tokenizer: PreTrainedTokenizerBase, text: str, length: int) -> str:
    """A text of more than ``length`` tokens as its first and last ``length // 2`` tokens, side by side."""
    ids = token_ids(tokenizer, text)
    if len(ids) <= length:
        return text
    half = length // 2
    return text_of(tokenizer, unbroken(tokenizer, ids[:half])) + text_of(tokenizer, unbroken(tokenizer, ids[-half:]))


def _set(name: str) -> LongBenchSet:
    known = [*SETS, *(f"{name}_e" for name in EVEN_SETS)]
    if name not in known:
        raise OptionError(f"LongBench has no set {name!r}.{nearest(name, known)}")
    return SETS[name.removesuffix("_e")]


@cache
def _turns(sizes: tuple[tuple[str, int], ...]) -> Sequence[tuple[str, int]]:
    """Every row as (set, place): the first of each set, then the second of each, and so on."""
    turns = sorted((place, order) for order, (_, rows) in enumerate(sizes) for place in range(rows))
    return [(sizes[order][0], place) for place, order in turns]


@cache
def _templates(path: str, name: str) -> str:
    found = read_json(Path(path).expanduser())
    if not isinstance(found, dict) or not isinstance(found.get(name), str):
        raise DataError(f"{path} has no prompt for the set {name!r}; it maps names of sets to prompts.")
    prompt: str = found[name]
    return prompt
