"""The recall suite of Based: prompts as the rows have them, cutting from the left, containment, XQuAD's frame."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.probe_samples import SHARED, count, tokenizer, write_jsonl
from plait import catalog
from plait.benchmarks import build_benchmark
from plait.benchmarks.based_recall import FDA, SWDE, SquadCompletion, XQuADCompletion, contains
from plait.errors import DataError

BYTES = tokenizer("bytes")
ROWS = [
    {
        "doc_id": "1",
        "key": "Applicant",
        "text": "  Applicant: Norvelta Works.\nMass: 3 kg.\n\nApplicant:\n",
        "value": "Norvelta Works ",
    },
    {"doc_id": "2", "key": "Mass", "text": "Mass: 3.5 kg (net)\nMass:", "value": "3.5 kg (net)"},
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "fda.jsonl", ROWS)


def test_containment_is_literal_and_ignores_case() -> None:
    assert contains("the mass is 3.5 KG (net).", ["3.5 kg (net)"]) == 1
    assert contains("the mass is 3x5 kg (net)", ["3.5 kg (net)"]) == 0  # a period is no wildcard
    assert contains("no", ["yes", "No"]) == 1
    assert contains("", ["a"]) == 0


@pytest.mark.parametrize("method", [FDA, SWDE, SquadCompletion])
def test_prompts_are_the_rows(method: type[FDA], rows: str) -> None:
    task = method(data=rows)
    assert len(task) == 2
    prompt = task.prompt(0, BYTES)
    assert prompt.text == "Applicant: Norvelta Works.\nMass: 3 kg.\n\nApplicant:"
    assert prompt.references == ("Norvelta Works",)
    assert prompt.max_new_tokens == 48
    assert prompt.stop == ("\n",)
    assert prompt.facts == {"value_in_prompt": 1}
    assert task.score(" norvelta works, of course", prompt) == 1
    assert task.score(" Norvelta", prompt) == 0


def test_official_sets() -> None:
    assert FDA.official == "hazyresearch/based-fda"
    assert SWDE.official == "hazyresearch/based-swde-v2"
    assert SquadCompletion.official == "hazyresearch/based-squad"
    with pytest.raises(DataError, match=r"hazyresearch/based-fda, and a data set of that name cannot be downloaded"):
        FDA().prompt(0, BYTES)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_long_documents_lose_their_beginning(name: str, tmp_path: Path) -> None:
    text = "Applicant: Norvelta Works. " + "The sand settles where the water slows down. " * 40 + "\nApplicant:"
    path = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text, "value": "Norvelta Works"}])
    prompt = FDA(data=path, length=300).prompt(0, tokenizer(name))
    assert text.endswith(prompt.text)
    assert 300 - 48 - 3 <= count(name, prompt.text) <= 300 - 48
    assert prompt.facts == {"value_in_prompt": 0}
    assert FDA(data=path, length=9000).prompt(0, tokenizer(name)).facts == {"value_in_prompt": 1}
    with pytest.raises(DataError, match="length=48 must hold"):
        FDA(data=path, length=48)


def test_fewer_samples_than_rows_are_drawn(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "many.jsonl", [{"text": f"{i}:", "value": str(i)} for i in range(100)])
    task = FDA(data=path, samples=10)
    found = [int(task.prompt(index, BYTES).references[0]) for index in range(len(task))]
    assert len(found) == 10
    assert found == sorted(set(found))
    assert found[-1] > 50


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"question": "Who wrote it? ", "answers": [{"text": "Ada"}, {"text": "Ada Lovelace"}]}]
    paragraphs = [{"context": "In 1843 Ada Lovelace wrote the notes.", "qas": rows}]
    path = tmp_path / "xquad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return str(path)


def test_xquad_frame(questions: str) -> None:
    task = build_benchmark("xquad_completion", {"questions": questions})
    assert len(task) == 1
    prompt = task.prompt(0, BYTES)
    assert prompt.text == "In 1843 Ada Lovelace wrote the notes.\n\nQuestion: Who wrote it?\nAnswer:"
    assert prompt.references == ("Ada", "Ada Lovelace")
    assert (prompt.max_new_tokens, prompt.stop) == (48, ("\n",))
    assert task.score(" by ada", prompt) == 1
    assert task.score(" Babbage", prompt) == 0


def test_xquad_cuts_the_paragraph_only(questions: str) -> None:
    end = "\n\nQuestion: Who wrote it?\nAnswer:"
    prompt = XQuADCompletion(questions=questions, length=48 + len(end) + 10).prompt(0, BYTES)
    assert prompt.text == "the notes." + end
    assert prompt.facts == {"value_in_prompt": 0}
    with pytest.raises(DataError, match=f"use length >= {48 + len(end) + 1}"):
        XQuADCompletion(questions=questions, length=60).prompt(0, BYTES)


@pytest.mark.skipif(not (SHARED / "xquad.en.json").is_file(), reason="no XQuAD here; test_xquad_frame does the same")
def test_xquad_itself() -> None:
    task = XQuADCompletion(questions=str(SHARED / "xquad.en.json"), length=6000)
    assert len(task) == 1190
    for index in range(0, 1190, 119):
        prompt = task.prompt(index, BYTES)
        assert prompt.facts == {"value_in_prompt": 1}
        assert prompt.text.endswith("?\nAnswer:")


def test_catalogue_knows_the_benchmarks() -> None:
    names = {"fda": FDA, "swde": SWDE, "squad_completion": SquadCompletion, "xquad_completion": XQuADCompletion}
    for name, method in names.items():
        assert catalog.get(name, "benchmark").load() is method
