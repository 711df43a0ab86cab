"""Study files: what is accepted, and what each mistake is told."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from plait.errors import OptionError
from plait.study.file import load_study, parse_study
from plait.study.trials import trials

STUDY = {
    "name": "small",
    "base": {"model": {"hidden_size": 16, "mixers": {"gla": {"num_heads": 2}}}, "training": {"steps": 10}},
    "tracks": {
        "lm": {"kind": "lm", "data": {"corpus": "python-stdlib"}},
        "recall": {"kind": "recall", "data": {"task": "mqar"}, "training": {"steps": 20}},
    },
    "grid": {"mixers": ["gla", "retnet"], "ratios": ["pure", "3:1"]},
}


def changed(**changes: object) -> dict:
    """The study with dotted keys (``__`` for a dot) replaced."""
    values = copy.deepcopy(STUDY)
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        place = values
        for part in path:
            place = place[part]
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(girds={}), "unknown key 'girds'.*Did you mean 'grid'"),
        (changed(grid__mixers=["gated_deltanett"]), "gated_deltanett.*Did you mean 'gated_deltanet'"),
        (changed(grid__ratios=[181]), "ratio 181: write .pure., .full. or .R:1."),
        (changed(grid__ratios=["3-1"]), "ratio '3-1': write"),
        (changed(grid__modle={"x": 1}), "grid.modle"),
        (changed(**{"grid__modle.placement": ["period_r"]}), "modle.placement.*dotted key of a section"),
        (changed(**{"grid__model.placement": []}), "model.placement is empty"),
        (changed(**{"grid__model.ratio": ["3:1"]}), "both 'ratios' and 'model.ratio'"),
        (changed(tracks={}), "tracks is empty"),
        (changed(tracks__lm__kind="words"), "tracks.lm.kind = 'words'"),
        (changed(tracks__recall__kind="lm"), "2 tracks of kind 'lm'"),
        (changed(seeds=[0, 0]), "seeds = .0, 0.: give at least one seed, and no seed twice"),
        (changed(tracks__lm__seeds=[]), "tracks.lm.seeds"),
        (changed(name="a/b"), "name = 'a/b'"),
        (changed(overrides=[{"when": {}, "set": {"model.mixer": "gla"}}]), "overrides set 'model.mixer'"),
        (changed(thresholds={"learnt": 2}), "thresholds.learnt = 2"),
        (changed(thresholds={"learned": 0.9}), "thresholds.learned.*Did you mean 'learnt'"),
        ([], "is a mapping"),
    ],
)
def test_file_errors(values: object, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_study(values, "study.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(base__model__hidden_sise=8), "study.yaml.*model.hidden_sise.*Did you mean 'hidden_size'"),
        (changed(base__training__steps="many"), "training.steps = 'many'"),
        (changed(**{"grid__training.learning_rat": [1e-3]}), "training.learning_rat.*Did you mean 'learning_rate'"),
        (changed(tracks__lm__data={}), "corpus"),
        (changed(exclude=[{"track": ["lm", "recall"]}]), "no trial is left"),
    ],
)
def test_point_errors(values: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        trials(parse_study(values, "study.yaml"), "study.yaml")


def test_every_study_of_the_repository_resolves() -> None:
    folder = Path(__file__).parents[2] / "studies"
    counts = {path.stem: len(trials(load_study(path))) for path in folder.glob("*.yaml") if path.stem != "scaling-toy"}
    assert counts["hybrid-linear-340m"] == counts["hybrid-linear-1.3b"] == 6 * 5 + 1
    assert counts["hybrid-linear-mini"] == (6 * 4 + 1) * (3 * 2 + 2)
    assert counts["demo"] >= 2 * 10


def test_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: [", encoding="utf-8")
    with pytest.raises(OptionError, match=r"broken.yaml is not valid YAML"):
        load_study(path)


def test_claims_are_those_of_the_catalogue() -> None:
    content = {**STUDY, "claims": ["loss_hardly_depends_on_ratio"]}
    assert parse_study(content, "s.yaml").claims == ["loss_hardly_depends_on_ratio"]
    with pytest.raises(OptionError, match=r"there is no claim 'loss_depends_on_ratio'.*loss_hardly_depends_on_ratio"):
        parse_study({**STUDY, "claims": ["loss_depends_on_ratio"]}, "s.yaml")
