"""Every recipe of the catalogue keeps the contract of ``plait.conversion.recipe.Recipe``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import plait
from conversion.small import LAYERS, save_data, save_teacher, teacher, tokens
from plait import catalog
from plait.conversion import convert
from plait.conversion.recipe import STAGES, TRAINED, Recipe
from plait.conversion.student import build_student, converted_layers, select_trained
from plait.errors import OptionError

RECIPES = catalog.names("recipe")


def recipe_of(name: str, **options: object) -> Recipe:
    kind: type[Recipe] = catalog.get(name, "recipe").load()
    recipe = kind.parse(name, options)
    assert isinstance(recipe, Recipe)
    return recipe


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("name", RECIPES)
def test_weights_that_are_taken_over_fit(name: str, kind: str) -> None:
    """They stand in the new layer by name and shape, and all else is the teacher's."""
    model, recipe = teacher(kind), recipe_of(name)
    student = build_student(model, recipe, [1], seed=0)
    assert converted_layers(student) == [0, 2]
    twin = student.model.layers[0].attn
    taken = recipe.twin_weights(model.model.layers[0].attn, twin)  # type: ignore[arg-type]
    for part, value in taken.items():
        assert torch.equal(twin.state_dict()[part], value), part
    for part, value in model.state_dict().items():
        if ".attn." not in part:
            assert torch.equal(student.state_dict()[part], value), part


@pytest.mark.parametrize("name", RECIPES)
def test_with_every_layer_kept_the_student_is_the_teacher(name: str) -> None:
    model, ids = teacher(), tokens(2, 15)
    student = build_student(model, recipe_of(name), range(LAYERS), seed=0, unchanged=True)
    assert torch.equal(student(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", RECIPES)
def test_a_stage_that_runs_trains_something(name: str) -> None:
    recipe = recipe_of(name)
    student = build_student(teacher(), recipe, [1], seed=0)
    for stage in TRAINED:
        if getattr(recipe, f"{stage}_steps") and not (stage == "tune" and recipe.lora_rank):
            trained = select_trained(student, recipe, stage)
            assert any(part.startswith("model.layers.0.attn.") for part in trained), stage


@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_runs_and_the_result_loads(name: str, tmp_path: Path) -> None:
    save_data(tmp_path)
    source = save_teacher(tmp_path / "teacher")
    steps = {f"{stage}_steps": 1 for stage in TRAINED}
    options = {**steps, "lora_rank": 2, "batch_size": 2}
    result = convert(
        source, name, tmp_path / "out", layers=[1], data=tmp_path / "data.yaml", samples=2, options=options
    )
    assert result.report["settings"]["recipe"] == name
    assert [stage["name"] for stage in result.report["stages"]] == list(STAGES)
    model: Any = plait.load(tmp_path / "out")[0]
    assert converted_layers(model) == [0, 2]
    found = model.generate(tokens(1, 6), max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    assert found.shape == (1, 9)


@pytest.mark.parametrize("name", RECIPES)
def test_an_unknown_option_is_named(name: str) -> None:
    with pytest.raises(OptionError, match="has no option 'colour'"):
        recipe_of(name, colour="red")
