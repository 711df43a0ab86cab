"""A benchmark in words as a measurement: what does the model answer to its prompts?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from plait import catalog
from plait.benchmarks.base import Benchmark
from plait.errors import OptionError
from plait.evaluation.answers import answers
from plait.evaluation.batching import Batches
from plait.evaluation.measurement import Advance, Measurement
from plait.evaluation.results import digest
from plait.evaluation.score import SAMPLES, Score
from plait.evaluation.subject import Subject


@dataclass(frozen=True)
class BenchmarkMeasurement(Measurement):
    """The mean score of greedy answers to the prompts of a benchmark.

    Args:
        label: name of the benchmark in the catalogue, with the settings that tell it from others.
        benchmark: what is asked.
    """

    label: str
    benchmark: Benchmark
    kind = "benchmark"
    unit = "prompts"

    @property
    def name(self) -> str:
        return self.label

    @property
    def samples(self) -> int:
        return len(self.benchmark)

    @property
    def settings(self) -> dict[str, Any]:
        return {"benchmark": catalog.name_of(type(self.benchmark), "benchmark"), **asdict(self.benchmark)}

    def check(self, subject: Subject) -> None:
        if subject.tokenizer is None:
            raise OptionError(f"{self.label} is a benchmark in words and {subject.name} has no tokenizer.")
        self.benchmark.prompt(0, subject.tokenizer)  # its data is there, its length fits

    def scores(self, subject: Subject, batches: Batches, advance: Advance) -> list[Score]:
        assert subject.tokenizer is not None
        prompts = [self.benchmark.prompt(index, subject.tokenizer) for index in range(len(self.benchmark))]
        said = answers(subject.model, subject.tokenizer, prompts, batches, advance)
        values = [self.benchmark.score(text, prompt) for text, prompt in zip(said, prompts, strict=True)]
        grouped: dict[tuple[tuple[str, Any], ...], list[float]] = defaultdict(list)
        for prompt, value in zip(prompts, values, strict=True):
            if prompt.facts:
                grouped[tuple(sorted(prompt.facts.items()))].append(value)
        groups = [
            {**dict(facts), "score": sum(group) / len(group), "samples": len(group)}
            for facts, group in sorted(grouped.items())
        ]
        more = {"answers": said[:20], SAMPLES: digest(prompt.text for prompt in prompts)}
        return [Score.of(self.benchmark.metric, values, groups=groups, more=more)]
