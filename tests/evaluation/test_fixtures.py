"""The shipped fixtures: they open, score what their file says, and can be trained from a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from plait.cli import app
from plait.errors import OptionError
from plait.evaluation.batching import Batches
from plait.evaluation.fixtures import SCORES_FILE, Recipe, build, read_recipe, run_of
from plait.evaluation.subject import Subject, open_subject
from plait.evaluation.tasks import TaskMeasurement
from plait.fixtures import fixture_folder, shipped
from plait.models import PlaitForCausalLM
from plait.runs.folder import read_run_file

NAMES = ["recall-small", "recall-small-hybrid"]


@pytest.fixture(scope="module", params=NAMES)
def fixture(request: pytest.FixtureRequest) -> Subject:
    return open_subject(f"fixture:{request.param}")


def test_what_is_shipped() -> None:
    assert list(shipped()) == NAMES
    llama, hybrid = (open_subject(f"fixture:{name}").model for name in NAMES)
    assert isinstance(llama, LlamaForCausalLM)
    assert llama.config.num_attention_heads == 2 * llama.config.num_key_value_heads
    assert isinstance(hybrid, PlaitForCausalLM)
    assert hybrid.config.layer_types == ["gated_deltanet"] * 3 + ["attention"]
    for name in NAMES:
        assert sum(path.stat().st_size for path in fixture_folder(name).iterdir()) < 4e6


def test_they_were_trained_by_the_recipe() -> None:
    recipe = read_recipe("recall-small")
    assert list(recipe.members) == NAMES
    for name in NAMES:
        assert read_run_file(fixture_folder(name)) == run_of(recipe, name).model_copy(update={"name": name})


def test_scores_are_those_of_their_file(fixture: Subject) -> None:
    """On the first 64 of the same rows, within what so few rows tell."""
    name = fixture.name.removeprefix("fixture:")
    scores = json.loads((fixture_folder(name) / SCORES_FILE).read_text())["scores"]
    told = {tuple(one["name"].split()[:2]): one["score"] for one in scores}
    for task, options in _tasks():
        (values,) = TaskMeasurement(task, options, 64).measure(fixture, Batches(16, fixture.device))
        expected = told[task, f"length={options.length}"]
        assert values.low - 0.02 <= expected <= values.high + 0.02, (task, options.length)


def _tasks() -> list[tuple[str, Any]]:
    from plait.data.tasks import build_task

    mqar = {"vocab_size": 256, "pairs": 16, "random_fillers": False, "power": 1.0}
    settings = [("mqar", {**mqar, "length": length}) for length in (64, 128)]
    settings += [(task, {"length": length}) for task in ("niah", "key_value") for length in (128, 256)]
    return [(task, build_task(task, options)) for task, options in settings]


def test_the_transformer_solves_its_tasks() -> None:
    scores = json.loads((fixture_folder("recall-small") / SCORES_FILE).read_text())["scores"]
    assert all(one["low"] > 0.95 for one in scores if one["metric"] == "accuracy")


def test_an_unknown_fixture_names_the_nearest() -> None:
    with pytest.raises(OptionError, match="Did you mean 'recall-small'"):
        open_subject("fixture:recall-smal")
    with pytest.raises(OptionError, match="Did you mean 'recall-small'"):
        read_recipe("recall-smal")


TINY: dict[str, Any] = {
    "description": "tiny",
    "members": {
        "one": {"save_as": "llama", "model": {"mixer": "attention", "ratio": "full", "num_hidden_layers": 1}},
        "two": {"model": {"mixer": "gated_deltanet", "ratio": "pure", "num_hidden_layers": 1, "hidden_size": 32}},
    },
    "data": {"length": 16, "task": "lag", "options": {"vocab_size": 16}},
    "training": {"steps": 2, "batch_size": 4, "warmup_steps": 1},
    "measure": [{"tasks": ["lag"], "limit": 8}],
}


def test_a_recipe_is_trained_saved_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = build(Recipe.model_validate(TINY), tmp_path, progress=False)
    assert scores["one"][0]["n"] == 8
    assert isinstance(open_subject(str(tmp_path / "one")).model, LlamaForCausalLM)
    assert json.loads((tmp_path / "two" / SCORES_FILE).read_text())["steps"] == 2
    file = tmp_path / "recipe.yaml"
    file.write_text(json.dumps(TINY))
    with pytest.raises(SystemExit) as end:
        app.main(["fixture", str(file), "--out", str(tmp_path), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["scores"] == scores  # nothing is trained again


def test_a_measurement_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({**TINY, "measure": [{"suite": "recall", "limit": 2}]})
    with pytest.raises(OptionError, match="cannot be measured"):
        build(recipe, tmp_path, progress=False)
