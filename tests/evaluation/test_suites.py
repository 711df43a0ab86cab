"""Suites and single measurements of small models: scores, files, what is left out and why, a second call, compare."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from plait import catalog
from plait.benchmarks.base import Benchmark, Prompt
from plait.cli import app
from plait.data.tasks.lag import Lag
from plait.data.tokenizers import byte_tokenizer
from plait.errors import CatalogError, DataError, OptionError
from plait.evaluation import compare as comparing
from plait.evaluation.answers import answers, cut
from plait.evaluation.batching import Batches
from plait.evaluation.prompts import BenchmarkMeasurement
from plait.evaluation.score import Score
from plait.evaluation.session import measure, results_folder
from plait.evaluation.subject import Subject, fingerprint
from plait.evaluation.suites import Unavailable, Wish, named, suite
from plait.evaluation.tasks import TaskMeasurement
from plait.files.writing import read_back, write_json
from plait.models import PlaitConfig, PlaitForCausalLM
from plait.runs.config import DataSection


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=258, **{**sizes, **changes})).eval()


def subject(model: Any = None, **fields: Any) -> Subject:
    model = model or llama()
    return Subject("tiny", model, fields.pop("tokenizer", byte_tokenizer()), fingerprint(model), **fields)


BATCHES = Batches("auto", torch.device("cpu"))


class Copying(torch.nn.Module):
    """Predicts the token one position before: right on lag 1."""

    device = torch.device("cpu")

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(16, 1)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        before = torch.nn.functional.pad(input_ids, (1, 0))[:, :-1]

        class Output:
            logits = torch.nn.functional.one_hot(before, 16).float()

        return Output


def test_a_model_that_knows_the_task_scores_one() -> None:
    one = Subject("copying", Copying(), None, "")  # type: ignore[arg-type]
    (score,) = TaskMeasurement("lag", Lag(vocab_size=16, length=20), 300).measure(one)
    assert (score.score, score.high, score.chance) == (1.0, 1.0, 1 / 16)
    assert score.more["by_position"]["position"] == list(range(1, 20))
    (later,) = TaskMeasurement("lag", Lag(vocab_size=16, length=20, lag=2), 300).measure(one)
    assert later.score == pytest.approx(1 / 16, abs=0.02)


def test_answers_do_not_depend_on_their_neighbours() -> None:
    for model in (llama(), PlaitForCausalLM(PlaitConfig(vocab_size=258, hidden_size=32, num_hidden_layers=4)).eval()):
        tokenizer = byte_tokenizer()
        prompts = [Prompt("x" * n + word, (), 6) for n in (1, 1, 3, 9) for word in ("ab", "cd", "e")]
        alone = [answers(model, tokenizer, [prompt], BATCHES)[0] for prompt in prompts]
        assert answers(model, tokenizer, prompts, BATCHES) == alone
        assert len(set(alone)) > 3


def test_answers_end_before_the_stop() -> None:
    model, tokenizer = llama(), byte_tokenizer()
    whole = answers(model, tokenizer, [Prompt("ab", (), 12)], BATCHES)[0]
    stop = whole[4]
    assert answers(model, tokenizer, [Prompt("ab", (), 12, (stop, "#"))], BATCHES)[0] == whole.split(stop)[0]
    assert cut("one\ntwo. three", (".", "\n")) == "one"


class Echo(Benchmark):
    metric = "half"

    def prompt(self, index: int, tokenizer: Any) -> Prompt:
        return Prompt(f"{index}?", (str(index),), 2, facts={"odd": index % 2})

    def score(self, prediction: str, prompt: Prompt) -> float:
        return int(prompt.references[0]) % 2 / 2


def test_a_benchmark_is_the_mean_over_prompts_and_over_groups() -> None:
    (score,) = BenchmarkMeasurement("echo", Echo(samples=10)).measure(subject())
    assert (score.metric, score.score) == ("half", 0.25)
    assert [(g["odd"], g["score"], g["samples"]) for g in score.groups] == [(0, 0.0, 5), (1, 0.5, 5)]


@pytest.mark.parametrize("name", catalog.suites())
def test_every_suite_gives_measurements_or_reasons(name: str) -> None:
    found = suite(name, subject(), Wish(lengths=[256], limit=2))
    assert found
    for one in found:
        if isinstance(one, Unavailable):
            assert len(one.reason) > 20
    assert len({(getattr(one, "kind", ""), one.name) for one in found}) == len(found)


def test_a_model_of_ids_has_no_benchmarks() -> None:
    found = suite("recall", subject(tokenizer=None), Wish())
    reasons = {one.name: one.reason for one in found if isinstance(one, Unavailable)}
    assert "no tokenizer" in reasons["passkey"]
    assert {one.name.split()[0] for one in found if not isinstance(one, Unavailable)} >= {"key_value", "niah"}


def test_options_come_from_the_training_and_from_the_user() -> None:
    trained = DataSection.model_validate(
        {
            "length": 48,
            "mixture": [
                {"task": "mqar", "options": {"vocab_size": 64, "pairs": 3}, "end": 0.5},
                {"task": "mqar", "options": {"vocab_size": 64, "pairs": 6}},
            ],
        }
    )
    one = subject(data=trained)
    (measurement,) = named("mqar", one, Wish())
    assert isinstance(measurement, TaskMeasurement)
    assert (measurement.task.vocab_size, measurement.task.length, measurement.task.pairs) == (64, 48, 6)  # type: ignore[attr-defined]
    (measurement,) = named("mqar", one, Wish(lengths=[128], options={"vocab_size": 100}))
    assert (measurement.task.vocab_size, measurement.task.length, measurement.task.pairs) == (100, 128, 16)  # type: ignore[attr-defined]
    assert measurement.name == "mqar length=128 vocab_size=100"


def test_wrong_names() -> None:
    with pytest.raises(OptionError, match="Did you mean 'recall'"):
        suite("recal", subject(), Wish())
    with pytest.raises((OptionError, CatalogError), match="'niah'"):
        named("nia", subject(), Wish())
    with pytest.raises(OptionError, match="vocab_size=258 or less"):
        named("lag", subject(), Wish(options={"vocab_size": 1000}))


def test_results_are_written_at_once_and_reused(tmp_path: Path) -> None:
    one = subject()
    tasks = [TaskMeasurement(f"lag {n}", Lag(vocab_size=16, length=n), 20) for n in (8, 12)]
    stream = measure(one, tasks, tmp_path, BATCHES, progress=False)
    first = next(stream)
    assert len(list(tmp_path.glob("lag-*.json"))) == 1
    assert len([first, *stream]) == 2
    place = next(tmp_path.glob("lag-8*.json"))
    kept = read_back(place)
    write_json(place, {**kept, "scores": [{**kept["scores"][0], "score": 0.5}]}, sealed=True)
    again = list(measure(one, tasks, tmp_path, BATCHES, progress=False))
    assert again[0]["scores"][0]["score"] == 0.5  # read, not measured
    other = list(measure(subject(llama(1)), tasks, tmp_path, BATCHES, progress=False))
    assert other[0]["scores"][0]["score"] != 0.5  # other weights
    assert len(list(tmp_path.glob("*.json"))) == 4


def _save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)  # type: ignore[operator]
    byte_tokenizer().save_pretrained(folder)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        _save(llama(seed), tmp_path / str(seed))
        with pytest.raises(SystemExit) as end:
            app.main(
                ["eval", str(tmp_path / str(seed)), "--tasks", "niah,passkey", "--lengths", "64,256"]
                + ["--limit", "8", "--option", "keys=2", "--json"]
            )
        assert end.value.code == 1  # passkey was asked for by name and has no room in 64 tokens
        assert "passkey: length=64 is too short" in capsys.readouterr().err
        with pytest.raises(SystemExit) as end:
            app.main(["eval", str(tmp_path / str(seed)), "--tasks", "niah", "--limit", "8", "--json"])
        assert end.value.code == 0
        result = json.loads(capsys.readouterr().out)
        assert result["unavailable"] == []
        scores = [score for one in result["results"] for score in one["scores"]]
        assert all(0 <= one["low"] <= one["score"] <= one["high"] <= 1 for one in scores)
    with pytest.raises(SystemExit) as end:
        app.main(["compare", str(tmp_path / "0"), str(tmp_path / "1"), "--json"])
    assert end.value.code == 0
    compared = json.loads(capsys.readouterr().out)["comparisons"]
    assert {one["name"].split()[0] for one in compared} >= {"niah"}
    assert all(one["samples"] == 8 and 0 <= one["p"] <= 1 for one in compared)


def test_the_needle_grid_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _save(llama(), tmp_path / "model")
    (tmp_path / "essay.txt").write_text("It rained all day. Nobody went out. " * 200)
    options = [f"haystack={tmp_path}/essay.txt", "lengths=2", "depths=2", "shortest=600"]
    arguments = ["eval", str(tmp_path / "model"), "--tasks", "needle", "--lengths", "800", "--limit", "4", "--json"]
    with pytest.raises(SystemExit) as end:
        app.main(arguments + [word for option in options for word in ("--option", option)])
    assert end.value.code == 0
    (picture,) = json.loads(capsys.readouterr().out)["pictures"]
    assert "heatmap" in Path(picture).read_text()


def test_comparison_by_hand(tmp_path: Path) -> None:
    settings = {"task": "x"}
    for name, values in (("a", [1, 1, 0, 0, 0, 1]), ("b", [1, 1, 1, 1, 1, 0])):
        (tmp_path / name).mkdir()
        score = dataclasses.asdict(Score.of("accuracy", values))
        result = {"name": "x", "kind": "task", "model": name, "settings": settings, "scores": [score]}
        (tmp_path / name / "x.json").write_text(json.dumps(result))
    (found,) = comparing.compare(tmp_path / "a", tmp_path / "b").comparisons
    assert (found.first, found.second, found.test) == (0.5, 5 / 6, "McNemar")
    assert found.difference == pytest.approx(1 / 3)
    assert found.p == pytest.approx(2 * (1 + 4) / 2**4)  # 1 against 3 of 4 that differ
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="no results"):
        comparing.compare(tmp_path / "a", tmp_path / "c")


def test_where_results_are(tmp_path: Path) -> None:
    _save(llama(), tmp_path / "model")
    assert results_folder(str(tmp_path / "model")) == tmp_path / "model" / "evaluation"
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "one.json").write_text("{}")
    assert results_folder(str(tmp_path / "kept")) == tmp_path / "kept"
    assert results_folder("owner/name") == Path("runs/owner-name/evaluation")
