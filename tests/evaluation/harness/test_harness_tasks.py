"""Files become lm-eval's tasks with the prompts of its own; a wrong row is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager

from evaluation.harness.samples import write_rows
from plait.errors import DataError, OptionError
from plait.evaluation.harness import tasks
from plait.evaluation.harness.tasks import folder_tasks, hub_tasks, read_rows

CHOICE: dict[str, Any] = {"query": "Question: Why?", "choices": ["This", "That"], "gold": 1}


def prompts(folder: Path, name: str, scratch: Path) -> list[tuple[str, str]]:
    """Context and continuation of each request."""
    scratch.mkdir(exist_ok=True)
    [task] = folder_tasks([name], folder, scratch)["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args for instance in task.instances]


def metrics(folder: Path, name: str, scratch: Path) -> list[str]:
    scratch.mkdir(exist_ok=True)
    [task] = folder_tasks([name], folder, scratch)["tasks"].values()
    return list(task.aggregation())


@pytest.mark.parametrize("name", ["piqa", "arc_easy", "arc_challenge"])
def test_questions(name: str, tmp_path: Path) -> None:
    rows = [CHOICE, {**CHOICE, "query": "Question: How?\n"}]
    write_rows(tmp_path, {name: rows})
    assert prompts(tmp_path, name, tmp_path / "scratch") == [
        ("Question: Why?\nAnswer:", " This"),
        ("Question: Why?\nAnswer:", " That"),
        ("Question: How?\nAnswer:", " This"),
        ("Question: How?\nAnswer:", " That"),
    ]
    assert metrics(tmp_path, name, tmp_path / "scratch") == ["acc", "acc_norm"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("openbookqa", "openbook_qa"), ("openbookqa", "openbookqa"), ("copa", "copa"), ("hellaswag", "hellaswag")],
)
def test_texts_to_go_on_from(name: str, file: str, tmp_path: Path) -> None:
    write_rows(tmp_path, {file: [{**CHOICE, "query": "Predators eat"}, {**CHOICE, "query": "42"}]})
    assert prompts(tmp_path, name, tmp_path / "scratch")[1:3] == [("Predators eat", " That"), ("42", " This")]


def test_last_words(tmp_path: Path) -> None:
    write_rows(tmp_path, {"lambada_openai": [{"context": "He gave it to", "continuation": "Frodo"}]})
    assert prompts(tmp_path, "lambada_openai", tmp_path / "scratch") == [("He gave it to", " Frodo")]
    assert metrics(tmp_path, "lambada_openai", tmp_path / "scratch") == ["perplexity", "acc"]


def test_partial_scoring(tmp_path: Path) -> None:
    row = {"context_options": ["so Ann", "so Eve"], "continuation": "was glad.", "gold": 1}
    write_rows(tmp_path, {"winogrande": [row]})
    assert prompts(tmp_path, "winogrande", tmp_path / "scratch") == [("so Ann", " was glad."), ("so Eve", " was glad.")]
    assert metrics(tmp_path, "winogrande", tmp_path / "scratch") == ["acc"]


def test_other_keys_and_empty_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "copa.jsonl"
    lines = [json.dumps({**CHOICE, "id": 3}), "", json.dumps({**CHOICE, "id": "x", "query": "é\u2028"})]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert [row["query"] for row in read_rows(path)[1]] == ["Question: Why?", "é\u2028"]
    assert len(prompts(tmp_path, "copa", tmp_path / "scratch")) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 is not JSON"),
        ("[1]", "line 2 is .1., not an object with query, choices, gold"),
        (json.dumps({"query": "a", "choices": ["b", "c"]}), "line 2: 'gold' is missing"),
        (json.dumps({**CHOICE, "query": 3}), "line 2: 'query' is 3, not a text"),
        (json.dumps({**CHOICE, "choices": ["one"]}), "line 2: 'choices' is .* at least two texts"),
        (json.dumps({**CHOICE, "choices": ["one", ""]}), "line 2: 'choices' is .* at least two texts"),
        (json.dumps({**CHOICE, "gold": 2}), "line 2: 'gold' is 2, not a whole number from 0 to 1"),
        (json.dumps({**CHOICE, "gold": "1"}), "line 2: 'gold' is '1'"),
        (json.dumps({**CHOICE, "gold": True}), "line 2: 'gold' is True"),
    ],
)
def test_a_wrong_row_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(json.dumps(CHOICE) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"piqa.jsonl, {message}"):
        read_rows(tmp_path / "piqa.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "continuation": ""}, "'continuation' is empty"),
        ({"context": None, "continuation": "a"}, "'context' is None"),
        ({"context_options": ["a", "b"], "continuation": "c", "gold": -1}, "'gold' is -1"),
        ({"question": "a"}, "line 1 has none of the forms {query, choices, gold}"),
    ],
)
def test_other_forms_are_checked(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path, {"own": [row]})
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path / "own.jsonl")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"empty.jsonl has no rows"):
        read_rows(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match=r"latin.jsonl is not UTF-8"):
        read_rows(tmp_path / "latin.jsonl")
    with pytest.raises(DataError, match="nowhere is no folder"):
        folder_tasks(["piqa"], tmp_path / "nowhere", tmp_path)


def test_unknown_tasks(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"no file piqa.jsonl in .*There are no jsonl files"):
        folder_tasks(["piqa"], tmp_path, tmp_path)
    write_rows(tmp_path, {"piqa": [CHOICE], "openbook_qa": [CHOICE]})
    with pytest.raises(OptionError, match=r"Task 'piqqa' has no file .* Did you mean 'piqa'"):
        folder_tasks(["piqqa"], tmp_path, tmp_path)
    with pytest.raises(OptionError, match=r"Task 'openbook_qa' .* Did you mean 'openbookqa'"):
        folder_tasks(["openbook_qa"], tmp_path, tmp_path)


@pytest.fixture
def few_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks in place of the thousands that lm-eval indexes: rows at hand, and rows on the hub."""
    write_rows(tmp_path, {"copa": [CHOICE]})
    folder_tasks(["copa"], tmp_path, tmp_path)
    here = yaml.safe_load((tmp_path / "copa.yaml").read_text())
    away = {**here, "task": "away", "dataset_path": "plait-tests/no-such-set", "dataset_kwargs": {}}
    (tmp_path / "away.yaml").write_text(yaml.safe_dump(away))
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr(tasks, "_all_tasks", lambda: manager)


@pytest.mark.usefixtures("few_tasks")
def test_tasks_by_name() -> None:
    assert list(hub_tasks(["copa"])["tasks"]) == ["copa"]
    with pytest.raises(OptionError, match=r"lm-eval has no task 'copaa'. Did you mean 'copa'"):
        hub_tasks(["copa", "copaa"])
    with pytest.raises(OptionError, match=r"no task 'xyzzy'. `lm-eval ls tasks` lists them"):
        hub_tasks(["xyzzy"])
    with pytest.raises(DataError, match=r"rows of away cannot be loaded: .*data_dir"):
        hub_tasks(["away"])  # tests run without a network


@pytest.mark.slow
def test_tasks_that_come_with_lm_eval() -> None:
    with pytest.raises(DataError, match=r"rows of piqa, mmlu cannot be loaded: .*data_dir"):
        hub_tasks(["piqa", "mmlu"])
    with pytest.raises(OptionError, match=r"no task 'hellaswagg'. Did you mean 'hellaswag'"):
        hub_tasks(["hellaswagg"])
