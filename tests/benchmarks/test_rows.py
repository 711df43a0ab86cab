"""Rows and questions from files: broken ones are named with their place, and rows are drawn without repetition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.probe_samples import write_jsonl
from plait.benchmarks.rows import chosen_rows, read_rows, read_squad
from plait.errors import DataError

FIELDS = ("text", "value")


def test_rows_of_a_file(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "fda.jsonl", [{"text": "a", "value": "b", "key": "k"}, {"text": "c", "value": "d"}])
    assert [row["value"] for row in read_rows(path, FIELDS, "validation")] == ["b", "d"]


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2 has no field 'value'; found text, worth"):
        read_rows(
            write_jsonl(tmp_path / "a.jsonl", [{"text": "", "value": ""}, {"text": "", "worth": ""}]), FIELDS, "x"
        )
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_rows(str(tmp_path / "none.jsonl"), FIELDS, "x")
    with pytest.raises(DataError, match="has no rows"):
        read_rows(write_jsonl(tmp_path / "b.jsonl", []), FIELDS, "x")


def test_a_set_of_the_hub_without_network() -> None:
    with pytest.raises(DataError, match=r"nobody/nothing, and a data set of that name cannot be downloaded"):
        read_rows("nobody/nothing", FIELDS, "validation")


def test_a_set_in_a_local_folder(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "validation.jsonl", [{"text": "a", "value": "b"}])
    assert read_rows(str(tmp_path), FIELDS, "validation")[0]["value"] == "b"


def squad(path: Path, questions: list[tuple[str, list[str]]]) -> str:
    rows = [{"question": q, "answers": [{"text": a, "answer_start": 0} for a in answers]} for q, answers in questions]
    data = [{"title": "t", "paragraphs": [{"context": "A text.", "qas": rows}]}]
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return str(path)


def test_questions_in_squads_format(tmp_path: Path) -> None:
    path = squad(tmp_path / "s.json", [("Who?", ["Ada", "ada", "Ada"]), ("Unanswerable?", []), ("When?", ["1843"])])
    found = read_squad(path)
    assert [(one.context, one.question, one.answers) for one in found] == [
        ("A text.", "Who?", ("Ada", "ada")),
        ("A text.", "When?", ("1843",)),
    ]


def test_questions_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"data": [{"paragraphs": [{"qas": [{"question": "?", "answers": [{"text": "x"}]}]}]}]}'
    )
    with pytest.raises(DataError, match=r"not in SQuAD's format .*'context'"):
        read_squad(str(tmp_path / "a.json"))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match=r"b\.json is not JSON"):
        read_squad(str(tmp_path / "b.json"))
    with pytest.raises(DataError, match="no question with an answer"):
        read_squad(squad(tmp_path / "c.json", [("Unanswerable?", [])]))
    with pytest.raises(DataError, match="does not exist"):
        read_squad(str(tmp_path / "d.json"))


def test_chosen_rows() -> None:
    assert list(chosen_rows(5, 5, 0)) == list(chosen_rows(5, 9, 1)) == [0, 1, 2, 3, 4]
    some = list(chosen_rows(1000, 20, 0))
    assert some == sorted(set(some))
    assert len(some) == 20
    assert some[-1] > 500  # not just the first rows
    assert some == list(chosen_rows(1000, 20, 0)) != list(chosen_rows(1000, 20, 1))
