"""YAML as people write it: numbers are numbers, nothing is dropped in silence, and nothing grows without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plait.errors import OptionError
from plait.runs.config import RunConfig
from plait.sections import parse_yaml, read_yaml, validated

DATA = "data: {corpus: python-stdlib}\n"


def run(text: str) -> RunConfig:
    return validated(RunConfig, parse_yaml(text, "run.yaml"), "run.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1e6", 1_000_000),
        ("2.5e3", 2500.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-3", -3),
        ("3:1", "3:1"),
        ("007", "007"),
        ("2026-11-30", "2026-11-30"),
        ("yes", "yes"),
        ("no", "no"),
        ("true", True),
        ("", None),
        ("~", None),
        ("'1e6'", "1e6"),
        ("1.2.3", "1.2.3"),
        ("1e", "1e"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}", "x")["a"]
    assert found == value
    assert type(found) is type(value)


def test_numbers_and_ratios_reach_every_section() -> None:
    model = "model: {ratio: 1:1, mixers: {attention: {rope_base: 1e6}}}\n"
    found = run(model + "training: {steps: 1e3, betas: [9e-1, 0.95]}\n" + DATA)
    assert found.model.ratio == "1:1"
    assert found.model.mixers == {"attention": {"rope_base": 1_000_000}}
    assert (found.training.steps, found.training.betas) == (1000, (0.9, 0.95))
    assert run("training:\n" + DATA).training.steps == 1000  # an empty section has its defaults


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", ["'a' appears twice", "line 1", "line 3"]),
        ("s: {steps: 7, steps: 9}", ["'steps' appears twice"]),
        ("a: &a [*a]", ["the value that contains it"]),
        ("a: [", ["not valid YAML", "line 1"]),
        ("a:\n\tb: 1", ["line 2", "spaces, not tabs"]),
        ("a: 1\n---\nb: 2\n", ["single document", "---"]),
        ("a: !!int x", ["not valid YAML"]),
        ("a: !!python/object:os.system {}", ["not valid YAML"]),
        ("[" * 5000, ["x"]),
        ("a: " + "9" * 5000, ["not valid YAML"]),
        ("? [a, b]\n: 1", ["not valid YAML"]),
    ],
)
def test_yaml_that_cannot_be_meant(text: str, words: list[str]) -> None:
    with pytest.raises(OptionError, match=r"^x") as caught:
        parse_yaml(text, "x")
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 1000


def test_a_merge_may_be_overridden() -> None:
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", "x")["b"] == {"x": 1, "y": 3}


def test_aliases_are_bounded_and_so_is_the_message() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(OptionError, match="aliases expand to more than") as caught:
        parse_yaml("\n".join(lines), "bomb.yaml")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {betas: [0.9, .nan]}", ["training.betas.1", "finite"]),
        ("training: {betas: [0.9, 1.5]}", ["training.betas.1 = 1.5", "less than 1"]),
        ("training: {learning_rate: .inf}", ["training.learning_rate", "finite"]),
        ("training: {steps: 1.5}", ["training.steps = 1.5"]),
        ("model: {num_hidden_layers: 2147483648}", ["model.num_hidden_layers = 2147483648", "4096"]),
        ("model: {hidden_size: 1e12}", ["model.hidden_size"]),
        ("model: {mixer: glaa}", ["model.mixer = 'glaa'", "Did you mean 'gla'?"]),
        ("model: {layer_types: [gla, atention]}", ["model.layer_types[1]", "'attention'"]),
        ("model: {ratio: '1:3'}", ["model.ratio = '1:3'", "R:1"]),
        ("model: {ratio: 181}", ["model.ratio = 181", "quotes"]),
        ("seed: true", ["seed", "not true or false"]),
        ("seed: -1", ["seed = -1"]),
        ("seed: 4294967296", ["seed = 4294967296"]),
        ("name: 7", ["name = 7", "in quotes", "'7'"]),
        ("name: ../../x", ["name = '../../x'", "folder"]),
        ("name: /abs", ["name = '/abs'"]),
        ("name: ''", ["name = ''"]),
        ("evaluate: {decode_contexts: [1099511627776]}", ["evaluate.decode_contexts.0"]),
        ("training: {stepz: 3}", ["unknown key 'training.stepz'", "Did you mean 'steps'?"]),
    ],
)
def test_every_number_and_name_is_checked_before_the_work(text: str, words: list[str]) -> None:
    with pytest.raises(OptionError, match=r"^run.yaml: ") as caught:
        run(f"{text}\n{DATA}")
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_task_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"data.task = 'mqarr': it is not a task. Did you mean 'mqar'\?"):
        run("data: {task: mqarr}")


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n", "7\n"])
def test_a_file_that_is_no_mapping(text: str) -> None:
    with pytest.raises(OptionError, match=r"^run.yaml (is empty|holds)"):
        run(text)


def test_files_in_other_encodings(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: a\n")
    assert read_yaml(path) == {"name": "a"}
    for content, words in [(b"name: caf\xe9\n", "LATIN1"), ("name: a\n".encode("utf-16"), "UTF-16")]:
        path.write_bytes(content)
        with pytest.raises(OptionError, match=words):
            read_yaml(path)
    path.write_bytes(b"a: 1\n" * 300_000)
    with pytest.raises(OptionError, match="Is it the right file"):
        read_yaml(path)
