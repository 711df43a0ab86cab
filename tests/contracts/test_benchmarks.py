"""Every benchmark of the catalogue keeps the contract of ``plait.benchmarks.base.Benchmark``."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.ruler.material import folder as ruler_folder
from plait import catalog
from plait.benchmarks import Benchmark, Prompt
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, PlaitError
from plait.evaluation.prompts import BenchmarkMeasurement
from plait.evaluation.subject import Subject
from plait.evaluation.suites import Wish, named

BENCHMARKS = catalog.names("benchmark")
TOKENIZER = byte_tokenizer()
SAMPLES = 6
#: Lengths that are tried, in bytes; a benchmark is asked at the first at which its prompts fit.
LENGTHS = (600, 1300, 2700, 5500, 12_000)


def loaded(name: str) -> type[Benchmark]:
    kind: type[Benchmark] = catalog.get(name, "benchmark").load()
    return kind


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with something small in each of the files that benchmarks name."""
    folder = tmp_path_factory.mktemp("data")
    for source in ("essays", "squad.json", "hotpotqa.json"):
        (folder / source).symlink_to(ruler_folder() / source)
    pages = [{"text": f"{'A page. ' * 90}Weight: {n} kg\nName: N{n}\nWeight:", "value": f"{n} kg"} for n in range(9)]
    named_files = {place for name in BENCHMARKS for places in loaded(name).files.values() for place in places}
    for place in sorted(named_files):
        if place.endswith(".jsonl"):
            (folder / place).write_text("".join(json.dumps(page) + "\n" for page in pages))
    (folder / "longbench").mkdir()
    about = {"context": "Some context. " * 60, "all_classes": None, "length": 5}
    rows = [{**about, "input": f"Which is {n}?", "answers": [f"answer {n}"]} for n in range(9)]
    (folder / "longbench" / "hotpotqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def built(kind: type[Benchmark], data: Path, /, **options: Any) -> Benchmark:
    """The benchmark with its files, at the smallest of the lengths at which all prompts fit."""
    known = {field.name for field in dataclasses.fields(kind)}
    for option, places in kind.files.items():
        options.setdefault(option, str(next(path for path in map(data.joinpath, places) if path.exists())))
    options.setdefault("samples", SAMPLES)
    if "length" not in known or "length" in options:
        return kind(**options)
    for length in LENGTHS:
        try:
            benchmark = kind(**options, length=length)
            for index in range(len(benchmark)):
                benchmark.prompt(index, TOKENIZER)
        except DataError:
            continue
        return benchmark
    raise AssertionError(f"{kind.__name__} fits into no length up to {LENGTHS[-1]}")


def prompts(benchmark: Benchmark) -> list[Prompt]:
    return [benchmark.prompt(index, TOKENIZER) for index in range(len(benchmark))]


def check_prompts_come_from_the_seed(kind: type[Benchmark], data: Path) -> None:
    """A prompt depends on the options and its number alone; another seed asks something else."""
    benchmark = built(kind, data)
    told = prompts(benchmark)
    assert 1 <= len(told) <= SAMPLES
    again = dataclasses.replace(benchmark)
    for index in reversed(range(len(told))):
        assert again.prompt(index, TOKENIZER) == told[index], f"prompt {index} is another one the second time"
    assert len({prompt.text for prompt in told}) > 1
    if not kind.files:
        other = prompts(dataclasses.replace(benchmark, seed=benchmark.seed + 1))
        assert [one.text for one in other] != [one.text for one in told], "another seed gives the same prompts"


def check_lengths(kind: type[Benchmark], data: Path) -> None:
    """A prompt, and its answer where the length counts it, has at most ``length`` tokens; more room is used."""
    benchmark = built(kind, data)
    if not hasattr(benchmark, "length"):
        return
    sizes: list[int] = []
    for length in [benchmark.length, *(factor * benchmark.length for factor in (2, 4))]:
        try:
            asked = prompts(dataclasses.replace(benchmark, length=length))
        except DataError:  # some ask for more in a longer text
            continue
        tokens = [len(TOKENIZER(prompt.text)["input_ids"]) for prompt in asked]
        for count, prompt in zip(tokens, asked, strict=True):
            answer = prompt.max_new_tokens if kind.room_for_answer else 0
            assert count + answer <= length, "a prompt is longer than it may be"
        sizes.append(max(tokens))
    assert len(sizes) > 1
    assert sizes == sorted(sizes), "more room makes prompts shorter"


def check_scores(kind: type[Benchmark], data: Path) -> None:
    """The right answer scores 1, silence and nonsense score 0."""
    benchmark = built(kind, data)
    for prompt in prompts(benchmark):
        assert prompt.references, "nothing would be right"
        said = [", ".join(prompt.references), *prompt.references]
        assert max(benchmark.score(text, prompt) for text in said) == 1.0, "the right answer does not score 1"
        for text in ("", "\u2603\u2603\u2603"):
            assert benchmark.score(text, prompt) == 0.0, "a wrong answer scores"


def check_facts(kind: type[Benchmark], data: Path) -> None:
    """All prompts have the same facts, by which results are grouped, and a model may say something."""
    told = prompts(built(kind, data))
    assert len({tuple(sorted(prompt.facts)) for prompt in told}) == 1, "prompts differ in what they say of themselves"
    json.dumps([dict(prompt.facts) for prompt in told])
    assert all(prompt.max_new_tokens >= 1 for prompt in told)


CHECKS = [check_prompts_come_from_the_seed, check_lengths, check_scores, check_facts]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", BENCHMARKS)
def test_contract(name: str, check: Any, data: Path) -> None:
    check(loaded(name), data)


@pytest.fixture(scope="session")
def subject() -> Subject:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Subject.of(LlamaForCausalLM(LlamaConfig(vocab_size=TOKENIZER.vocab_size + 8, **sizes)).eval(), TOKENIZER)


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if loaded(name).files])
def test_without_its_data_it_is_refused_by_name(name: str, data: Path, tmp_path: Path, subject: Subject) -> None:
    option = next(iter(loaded(name).files))
    for folder in (None, tmp_path):
        with pytest.raises(PlaitError, match=rf"{name} needs its {option}.*--data-dir.*--option {option}=PATH"):
            named(name, subject, Wish(data_dir=folder))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_broken_file_is_refused(name: str, data: Path) -> None:
    kind = loaded(name)
    for option in kind.files:
        with pytest.raises(PlaitError, match="nowhere"):
            prompts(built(kind, data, **{option: "nowhere/at/all"}, **_length(kind)))


def _length(kind: type[Benchmark]) -> dict[str, int]:
    return {"length": LENGTHS[-1]} if "length" in {field.name for field in dataclasses.fields(kind)} else {}


# ---- planted faults: each check sees the fault that it is there for


@dataclass(frozen=True, kw_only=True)
class Repeat(Benchmark):
    """A word among others, and the same word asked for; with a ``fault``, wrong in one way."""

    length: int = 600
    fault: str = ""
    metric = "contains"

    def prompt(self, index: int, tokenizer: Any) -> Prompt:
        rng = random.Random() if self.fault == "random" else random.Random(f"{self.seed} {index}")
        if self.fault == "seed":
            rng = random.Random(index)
        word = str(rng.randrange(10**6))
        room = self.length - (0 if self.fault == "long" else 20)
        text = f"{'x ' * room}"[: room - len(word) - 1] + f" {word}"
        facts = {"odd": 1} if self.fault == "facts" and index % 2 else {}
        return Prompt(text, () if self.fault == "nothing" else (word,), 16, facts=facts)

    def score(self, prediction: str, prompt: Prompt) -> float:
        if self.fault == "mild":
            return 0.5 + 0.5 * (prompt.references[0] in prediction)
        return float(prompt.references[0] in prediction) * (0.5 if self.fault == "strict" else 1)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_sound_benchmark_passes(check: Any, data: Path) -> None:
    check(Repeat, data)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("random", check_prompts_come_from_the_seed, "another one the second time"),
        ("seed", check_prompts_come_from_the_seed, "another seed gives the same"),
        ("long", check_lengths, "longer than it may be"),
        ("nothing", check_scores, "nothing would be right"),
        ("strict", check_scores, "does not score 1"),
        ("mild", check_scores, "a wrong answer scores"),
        ("facts", check_facts, "what they say of themselves"),
    ],
)
def test_a_planted_fault_is_seen(fault: str, check: Any, message: str, data: Path) -> None:
    faulty = type("Faulty", (Repeat,), {"__annotations__": {"fault": "str"}, "fault": fault})
    with pytest.raises(AssertionError, match=message):
        check(dataclass(frozen=True, kw_only=True)(faulty), data)


def test_settings_name_the_benchmark_of_the_catalogue(data: Path) -> None:
    for name in BENCHMARKS:
        benchmark = built(loaded(name), data)
        assert BenchmarkMeasurement(name, benchmark).settings["benchmark"] == name
