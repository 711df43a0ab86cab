"""No name leaves its folder."""

from __future__ import annotations

from typing import Any

import pytest

from plait.errors import OptionError
from plait.evaluation.fixtures import Recipe
from plait.runs.config import RunConfig
from plait.sections import validated
from plait.study.file import parse_study

GOOD = ["run", "a", "3-to-1", "Gated_DeltaNet.v2", "x" * 100]
BAD = [
    "", ".", "..", "/abs", "../../x", "a/b", "a\\b", "C:", "C:\\x", "con", "NUL.txt", "com1", "a\nb", "a\0b", "\x1b[2J",
    " a", "a ", "a.", "-rf", ".hidden", "x" * 101, "<script>", "a\u202eb", "~", "$HOME", "a:b", "a*",
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_names_that_are_fine(name: str) -> None:
    assert RunConfig.model_validate({"name": name, "data": {"task": "mqar"}}).name == name


@pytest.mark.parametrize("name", BAD)
def test_names_that_could_do_harm_are_refused(name: str) -> None:
    with pytest.raises(OptionError, match=r"run\.yaml: name = .*: .*name"):
        validated(RunConfig, {"name": name, "data": {"task": "mqar"}}, "run.yaml")
    study: dict[str, Any] = {"name": name, "tracks": {}, "grid": {"mixers": ["gla"]}}
    with pytest.raises(OptionError, match=r"study\.yaml: name = "):
        parse_study(study, "study.yaml")
    recipe = {"description": "d", "members": {name: {"model": {}}}, "data": {}, "training": {}, "measure": []}
    with pytest.raises(OptionError, match=r"fixture\.yaml: members"):
        validated(Recipe, recipe, "fixture.yaml")
