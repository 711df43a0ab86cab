"""Metrics of tasks and suites, against values by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from plait.study.scores import suite_metrics, task_metrics


def score(name: str, values: list[float], chance: float | None = None, **more: Any) -> dict[str, Any]:
    mean = sum(values) / len(values)
    ends = {"low": mean - 0.01, "high": mean + 0.02}
    return {"name": name, "metric": "accuracy", "score": mean, "per_sample": values, "chance": chance, **ends, **more}


def evaluation(*tasks: dict[str, Any], mqar: tuple[Any, ...] = (), suites: tuple[Any, ...] = ()) -> dict[str, Any]:
    return {"tasks": list(tasks), "mqar": list(mqar), "suites": list(suites)}


def test_one_task_of_one_seed_keeps_its_score_and_interval() -> None:
    found = task_metrics("state", [evaluation(score("parity", [1.0, 0.5, 0.75, 0.75], 0.5))])
    assert list(found) == ["task:state"]
    state = found["task:state"]
    assert (state.mean, state.low, state.high) == (0.75, 0.74, 0.77)
    assert (state.n, state.over, state.chance) == (4, "batches", 0.5)


def test_mean_over_tasks_counts_each_once() -> None:
    mixed = evaluation(score("a", [1.0, 1.0], 0.1), score("b", [0.0, 0.5], 0.3))
    found = task_metrics("ruler", [mixed])
    assert list(found) == ["task:ruler", "task:ruler@a", "task:ruler@b"]
    ruler = found["task:ruler"]
    assert (ruler.mean, ruler.n, ruler.over) == (0.625, 2, "batches")
    assert ruler.chance == pytest.approx(0.2)
    assert (ruler.low, ruler.high) == (0.5, 0.75)  # the first rows together 0.5, the second ones 0.75
    assert found["task:ruler@b"].mean == 0.25
    assert task_metrics("r", [evaluation(score("a", [1.0], 0.1), score("b", [0.0]))])["task:r"].chance is None


def test_seeds_give_the_interval_where_there_are_several() -> None:
    seeds = [evaluation(score("a", [0.4, 0.4], 0.1), score("b", [value] * 2, 0.1)) for value in (0.2, 0.4, 0.6)]
    found = task_metrics("ruler", seeds)
    assert found["task:ruler"].mean == pytest.approx(0.4)
    assert (found["task:ruler"].n, found["task:ruler"].over) == (3, "seeds")
    half = 4.303 * 0.1 / math.sqrt(3)  # means 0.3, 0.4, 0.5; Student's t with two degrees of freedom
    assert found["task:ruler"].high == pytest.approx(0.4 + half, rel=1e-3)
    assert found["task:ruler"].chance == pytest.approx(0.1)
    assert found["task:ruler@b"].high == pytest.approx(0.4 + 2 * half, rel=1e-3)


def test_equal_names_and_mqar_stay_apart() -> None:
    row = {"length": 16, "pairs": 4, "accuracy": 0.5, "examples": 2, "per_example": [0.0, 1.0]}
    found = task_metrics("mix", [evaluation(score("niah", [1.0, 1.0]), score("niah", [0.0, 0.0]), mqar=(row,))])
    assert {name: one.mean for name, one in found.items()} == {
        "task:mix": 0.5,
        "task:mix@niah": 1.0,
        "task:mix@niah (2)": 0.0,
        "task:mix@mqar 16x4": 0.5,
    }
    alone = task_metrics("mix", [evaluation(mqar=({**row, "accuracy": 1.0, "per_example": [1.0, 1.0]},))])["task:mix"]
    assert (alone.mean, alone.high) == (1.0, 1.0)
    assert 0 < alone.low < 1  # Wilson's: two right answers do not make certain


def test_suites_carry_their_unit_and_leave_out_what_could_not_be_measured() -> None:
    suites = (
        score("parity length=40", [0.5, 0.7], 0.5),
        {"name": "passkey", "reason": "the model has no tokenizer"},
        {**score("wikitext", [1.0]), "metric": "bits per byte", "score": 1.25, "per_sample": [], "more": {"n": 62}},
    )
    found = suite_metrics("state", [evaluation(suites=suites)])
    assert list(found) == ["suite:state@parity length=40, accuracy", "suite:state@wikitext, bits per byte"]
    assert found["suite:state@parity length=40, accuracy"].mean == 0.6
    text = found["suite:state@wikitext, bits per byte"]
    assert (text.mean, text.n, text.over) == (1.25, 62, "batches")
    seeds = suite_metrics("state", [evaluation(suites=suites), evaluation(suites=suites[2:])])
    assert list(seeds) == ["suite:state@wikitext, bits per byte"]  # one seed alone has parity
    assert (seeds["suite:state@wikitext, bits per byte"].mean, suite_metrics("lm", [{"lm": {}}])) == (1.25, {})


def test_several_seeds_of_a_score_above_one() -> None:
    rows = [{**score("text", [1.0]), "metric": "bits per byte", "score": value} for value in (1.2, 1.4)]
    found = suite_metrics("lm", [evaluation(suites=(row,)) for row in rows])["suite:lm@text, bits per byte"]
    assert found.mean == pytest.approx(1.3)
    assert found.low < 1.2 < 1.4 < found.high  # not cut off at 1
