"""What can be measured of a model, on one contract: a token task, a benchmark in words, a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from plait.benchmarks.base import PromptTask
from plait.data import TaskData
from plait.data.tasks.base import IGNORED, Task, TaskDataset, per_example_accuracy
from plait.errors import OptionError
from plait.evaluation.answers import answers
from plait.evaluation.batching import Batches
from plait.evaluation.perplexity import MOST_LOGITS
from plait.evaluation.results import SAMPLES, digest
from plait.evaluation.subject import Subject
from plait.models.cache import CACHE_NAME
from plait.models.heads import AutoencoderForCompression
from plait.statistics.intervals import interval_method, score_interval

#: Told how many samples have been done since the last call, and where that was not known before how many there are.
Advance = Callable[..., None]


@dataclass(frozen=True)
class Score:
    """The result of one measurement.

    Args:
        metric: what ``score`` is.
        score: mean over the samples.
        low, high: its 95 % interval.
        per_sample: the score of each sample, the same samples for every model.
        groups: means over the samples that share some facts, such as a needle's depth.
        more: further numbers, such as the accuracy at each position.
        chance: what a uniform guess scores, where that is known.
        interval: how the interval was found: ``Wilson``, ``bootstrap``, ``normal`` (1.96 standard errors) or ``none``.
    """

    metric: str
    score: float
    low: float
    high: float
    per_sample: Sequence[float]
    groups: Sequence[Mapping[str, Any]] = ()
    more: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None
    interval: str = "none"

    @classmethod
    def of(cls, metric: str, per_sample: Sequence[float], **rest: Any) -> Score:
        """The mean of the samples with its interval."""
        low, high = score_interval(per_sample)
        return cls(
            metric,
            sum(per_sample) / len(per_sample),
            low,
            high,
            list(per_sample),
            interval=interval_method(per_sample),
            **rest,
        )


class Measurement(ABC):
    """One thing to measure.

    Attributes:
        name: for people and for file names.
        samples: how many there are, for the progress.
        unit: what they are.
    """

    name: str
    samples: int
    unit: ClassVar[str] = "samples"

    @property
    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that the result depends on beside the model."""

    @abstractmethod
    def check(self, subject: Subject) -> None:
        """Raise a :class:`~plait.errors.PlaitError` where this model cannot be measured so."""

    @abstractmethod
    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        """Measure; ``advance(count, total)`` is told how many samples have been done since the last call."""


@dataclass(frozen=True)
class TaskMeasurement(Measurement):
    """Teacher-forced accuracy on rows of a task of token ids, always the same held-out rows.

    Args:
        label: name of the task in the catalogue, with its settings.
        task: what is generated.
        samples: rows.
    """

    label: str
    task: Task
    samples: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    @property
    def spec(self) -> dict[str, Any]:
        return {"task": type(self.task).__name__, "samples": self.samples, **asdict(self.task)}  # type: ignore[call-overload]

    def check(self, subject: Subject) -> None:
        if self.task.autoencoder != isinstance(subject.model, AutoencoderForCompression):
            raise OptionError(
                f"{self.label} and {subject.name} do not fit: an auto-encoder task needs a model trained on one, whose "
                "answers cannot be read off the input."
            )
        if self.task.vocab_size > subject.vocab_size:
            raise OptionError(
                f"{self.label} has {self.task.vocab_size} ids and {subject.name} knows {subject.vocab_size}: "
                f"give the task vocab_size={subject.vocab_size} or less."
            )

    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        dataset = TaskDataset(self.task, self.samples, TaskData.HELD_OUT_SEED, "test")
        right: Tensor = torch.zeros(0, dtype=torch.float64)
        asked: Tensor = torch.zeros(0, dtype=torch.float64)

        def accuracy(rows: Sequence[int]) -> list[float]:
            nonlocal right, asked
            batch = TaskData.collate([dataset[row] for row in rows])
            targets = batch["targets"]
            wanted = targets != IGNORED
            predictions = predict(subject, batch["input_ids"], int(wanted.any(0).nonzero()[0]))
            hits = ((predictions == targets) & wanted).sum(0).double()
            right = torch.nn.functional.pad(right, (0, len(hits) - len(right))) + hits
            asked = torch.nn.functional.pad(asked, (0, len(hits) - len(asked))) + wanted.sum(0)
            advance(len(rows))
            values: list[float] = per_example_accuracy(predictions, targets).tolist()
            return values

        values = batches.run(accuracy, range(self.samples), self.task.longest)
        places = asked.nonzero().flatten()
        positions = {"position": places.tolist(), "accuracy": (right[places] / asked[places]).tolist()}
        return Score.of("accuracy", values, more={"by_position": positions}, chance=self.task.chance)


@torch.no_grad()
def predict(subject: Subject, input_ids: Tensor, first: int = 0) -> Tensor:
    """The most probable next token on every position, ``(B, T)``, on the CPU.

    Args:
        subject: the model; under a policy it reads the row in one pass before ``first`` and token by token from there.
        input_ids: ``(B, T)``.
        first: first position that is asked for; before it a policy's answer is -1.
    """
    rows = max(1, MOST_LOGITS // (input_ids.shape[1] * subject.vocab_size))
    return torch.cat([_predict(subject, part.to(subject.device), first).cpu() for part in input_ids.split(rows)])


def _predict(subject: Subject, input_ids: Tensor, first: int) -> Tensor:
    if subject.policy is None:
        return subject.model(input_ids=input_ids, use_cache=False).logits.argmax(-1)
    cache, predictions = None, torch.full_like(input_ids, -1)
    if first > 0:
        cache = subject.model(input_ids=input_ids[:, :first], use_cache=True)[CACHE_NAME]
    for place in range(first, input_ids.shape[1]):
        token = input_ids[:, place : place + 1]
        output = subject.model(input_ids=token, use_cache=True, **{CACHE_NAME: cache})
        cache, predictions[:, place] = output[CACHE_NAME], output.logits[:, -1].argmax(-1)
    return predictions


@dataclass(frozen=True)
class PromptMeasurement(Measurement):
    """The mean score of greedy answers to the prompts of a benchmark.

    Args:
        label: name of the benchmark in the catalogue, with its settings.
        task: what is asked.
    """

    label: str
    task: PromptTask
    unit = "prompts"

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.label

    @property
    def samples(self) -> int:  # type: ignore[override]
        return len(self.task)

    @property
    def spec(self) -> dict[str, Any]:
        return {"benchmark": type(self.task).__name__, **asdict(self.task)}  # type: ignore[call-overload]

    def check(self, subject: Subject) -> None:
        if subject.tokenizer is None:
            raise OptionError(f"{self.label} is a benchmark in words and {subject.name} has no tokenizer.")
        self.task.prompt(0, subject.tokenizer)  # its data is there, its length fits

    def run(self, subject: Subject, batches: Batches, advance: Advance) -> Score:
        assert subject.tokenizer is not None
        prompts = [self.task.prompt(index, subject.tokenizer) for index in range(len(self.task))]
        said = answers(subject.model, subject.tokenizer, prompts, batches, advance)
        values = [self.task.score(text, prompt) for text, prompt in zip(said, prompts, strict=True)]
        grouped: dict[tuple[tuple[str, Any], ...], list[float]] = defaultdict(list)
        for prompt, value in zip(prompts, values, strict=True):
            if prompt.facts:
                grouped[tuple(sorted(prompt.facts.items()))].append(value)
        groups = [
            {**dict(facts), "score": sum(group) / len(group), "samples": len(group)}
            for facts, group in sorted(grouped.items())
        ]
        return Score.of(
            self.task.metric,
            values,
            groups=groups,
            more={"answers": said[:20], SAMPLES: digest(one.text for one in prompts)},
        )
