"""LongBench: the benchmark's settings, prompts with their middle cut, sets in turns, first lines, best answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.probe_samples import PARAGRAPH, count, tokenizer, write_jsonl
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.longbench import LongBench, without_middle
from plait.benchmarks.longbench_metrics import METRICS
from plait.benchmarks.longbench_sets import EVEN_SETS, SETS
from plait.errors import DataError, OptionError

BYTES = tokenizer("bytes")


def row(**values: Any) -> dict[str, Any]:
    return {"input": "Q?", "context": "C {x}", "answers": ["a"], "all_classes": None, "length": 5, **values}


def folder(path: Path, sets: dict[str, Iterable[dict[str, Any]]]) -> str:
    for name, rows in sets.items():
        write_jsonl(path / f"{name}.jsonl", rows)
    return str(path)


def test_settings_are_the_benchmarks() -> None:
    prompts = json.dumps({name: one.prompt for name, one in SETS.items()}, sort_keys=True).encode()
    digest = hashlib.sha256(prompts).hexdigest()
    assert (
        digest == "bb89f011861ff65f8534f366632b99cc9d5681ae983c50f2537230faae16613f"
    )  # of LongBench/config/dataset2prompt.json in THUDM/LongBench at 2e00731
    tokens = {
        32: "hotpotqa 2wikimqa musique triviaqa passage_count passage_retrieval_en passage_retrieval_zh",
        64: "multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p",
        128: "narrativeqa qasper dureader samsum",
        512: "gov_report qmsum multi_news vcsum",
    }
    assert {name: one.max_new_tokens for name, one in SETS.items()} == {
        name: new for new, names in tokens.items() for name in names.split()
    }
    metrics = {
        "qa_f1": "narrativeqa qasper multifieldqa_en hotpotqa 2wikimqa musique triviaqa",
        "qa_f1_zh": "multifieldqa_zh",
        "rouge_l": "gov_report qmsum multi_news samsum",
        "rouge_l_zh": "dureader vcsum",
        "classification": "trec lsht",
        "count": "passage_count",
        "retrieval": "passage_retrieval_en",
        "retrieval_zh": "passage_retrieval_zh",
        "code_similarity": "lcc repobench-p",
    }
    assert {name: one.metric for name, one in SETS.items()} == {
        name: metric for metric, names in metrics.items() for name in names.split()
    }
    assert set(metrics) == set(METRICS)
    assert {name for name, one in SETS.items() if one.first_line} == {"trec", "triviaqa", "samsum", "lsht"}
    assert len(SETS) == 21
    assert len(EVEN_SETS) == 13


def test_prompt_and_score(tmp_path: Path) -> None:
    data = folder(tmp_path, {"hotpotqa": [row(context="In {braces}.", input="Where?", answers=["Rome", "in Roma"])]})
    task = build_benchmark("longbench", {"data": data, "dataset": "hotpotqa"})
    prompt = task.prompt(0, BYTES)
    assert prompt.text == (
        "Answer the question based on the given passages. Only give me the answer and do not output any other words."
        "\n\nThe following are given passages.\nIn {braces}.\n\nAnswer the question based on the given passages. Only "
        "give me the answer and do not output any other words.\n\nQuestion: Where?\nAnswer:"
    )
    assert (prompt.max_new_tokens, prompt.stop, prompt.facts) == (32, (), {"dataset": "hotpotqa"})
    assert task.score("Rome", prompt) == 1
    assert task.score("Roma", prompt) == pytest.approx(2 / 3)  # the best over the answers
    assert task.score("\n\nRome\nnot Paris", prompt) == pytest.approx(0.5)  # all lines count here


def test_first_line_only(tmp_path: Path) -> None:
    data = folder(tmp_path, {"triviaqa": [row(answers=["Rome"])]})
    task = LongBench(data=data, dataset="triviaqa")
    prompt = task.prompt(0, BYTES)
    assert task.score("\n\nRome\nPassage: another", prompt) == 1
    assert task.score("no\nRome", prompt) == 0


def test_classes_come_from_the_row(tmp_path: Path) -> None:
    data = folder(tmp_path, {"trec": [row(answers=["Food"], all_classes=["Food", "City"])]})
    task = LongBench(data=data)
    prompt = task.prompt(0, BYTES)
    assert task.score("Food", prompt) == 1
    assert task.score("Food City", prompt) == 0.5


def test_sets_take_turns(tmp_path: Path) -> None:
    data = folder(tmp_path, {"qasper": [row(), row(), row()], "lcc": [row()], "trec": [row(), row()]})
    task = LongBench(data=data)
    assert task.datasets == ["qasper", "trec", "lcc"]  # the order of the benchmark
    names = [task.prompt(index, BYTES).facts["dataset"] for index in range(len(task))]
    assert names == ["qasper", "trec", "lcc", "qasper", "trec", "qasper"]
    assert len(LongBench(data=data, samples=4)) == 4


def test_longbench_e_is_grouped_by_words(tmp_path: Path) -> None:
    rows = [row(length=3999), row(length=4000), row(length=8000)]
    task = LongBench(data=folder(tmp_path, {"qasper_e": rows}), dataset="qasper_e")
    assert [task.prompt(index, BYTES).facts["words"] for index in range(3)] == ["0-4k", "4-8k", "8k+"]
    assert task.prompt(0, BYTES).max_new_tokens == 128


def test_the_middle_is_cut() -> None:
    text = "".join(f"{number:03d}." for number in range(100))
    assert without_middle(BYTES, text, 400) == text
    assert without_middle(BYTES, text, 399) == text[:199] + text[-199:]
    assert without_middle(BYTES, text, 20) == text[:10] + text[-10:]
    assert without_middle(BYTES, "a€" + "x" * 20 + "€b", 4) == "ab"  # no half character
    cut = without_middle(tokenizer("bpe"), PARAGRAPH, 60)
    assert PARAGRAPH.startswith(cut[:20])
    assert PARAGRAPH.endswith(cut[-20:])
    assert count("bpe", cut) in range(57, 64)


def test_prompts_are_cut_to_length(tmp_path: Path) -> None:
    data = folder(tmp_path, {"qasper": [row(context=PARAGRAPH * 20)]})
    whole = LongBench(data=data).prompt(0, BYTES).text
    cut = LongBench(data=data, length=1000).prompt(0, BYTES).text
    ids = whole.encode()
    assert cut.encode() == ids[:500] + ids[-500:]


def test_other_prompts(tmp_path: Path) -> None:
    data = folder(tmp_path, {"qasper": [row(input="Why?")]})
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"qasper": "{context}|{input}"}))
    assert LongBench(data=data, prompts=str(path)).prompt(0, BYTES).text == "C {x}|Why?"
    path = tmp_path / "none.json"
    path.write_text("{}")
    with pytest.raises(DataError, match="no prompt for the set 'qasper'"):
        LongBench(data=data, prompts=str(path)).prompt(0, BYTES)


def test_what_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no set 'hotpot'\. Did you mean 'hotpotqa'"):
        LongBench(data=str(tmp_path), dataset="hotpot")
    with pytest.raises(OptionError, match="no set 'musique_e'"):  # LongBench-E lacks it
        LongBench(data=str(tmp_path), dataset="musique_e")
    with pytest.raises(DataError, match=r"does not hold any set"):
        LongBench(data=str(tmp_path))
    with pytest.raises(DataError, match=r"does not hold qasper\.jsonl"):
        LongBench(data=str(tmp_path), dataset="qasper")
    data = folder(tmp_path, {"qasper": [{"input": "", "context": "", "answers": [], "length": 1}]})
    with pytest.raises(DataError, match="no field 'all_classes'"):
        LongBench(data=data).prompt(0, BYTES)


def test_catalogue_knows_the_benchmark() -> None:
    assert catalog.get("longbench", "benchmark").load() is LongBench
