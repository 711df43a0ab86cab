"""Metrics of a study from results of trials, against values by hand."""

from __future__ import annotations

import math

import pytest

from plait.study.scores import further_metrics, recall_metrics, task_metrics, text_metrics
from study.evaluations import evaluation, mqar, result, score, task


def test_one_task_of_one_seed_keeps_its_score_and_interval() -> None:
    found = task_metrics("state", [evaluation(task("parity", [1.0, 0.5, 0.75, 0.75], 0.5))])
    assert list(found) == ["task:state"]
    state = found["task:state"]
    assert (state.mean, state.low, state.high) == (0.75, 0.74, 0.77)
    assert (state.n, state.over, state.chance) == (4, "samples", 0.5)


def test_mean_over_tasks_counts_each_once() -> None:
    mixed = evaluation(task("a", [1.0, 1.0], 0.1), task("b", [0.0, 0.5], 0.3))
    found = task_metrics("ruler", [mixed])
    assert list(found) == ["task:ruler", "task:ruler@a", "task:ruler@b"]
    ruler = found["task:ruler"]
    assert (ruler.mean, ruler.n, ruler.over) == (0.625, 2, "samples")
    assert ruler.chance == pytest.approx(0.2)
    assert (ruler.low, ruler.high) == (0.5, 0.75)  # the first rows together 0.5, the second ones 0.75
    assert found["task:ruler@b"].mean == 0.25
    assert task_metrics("r", [evaluation(task("a", [1.0], 0.1), task("b", [0.0]))])["task:r"].chance is None


def test_seeds_give_the_interval_where_there_are_several() -> None:
    seeds = [evaluation(task("a", [0.4, 0.4], 0.1), task("b", [value] * 2, 0.1)) for value in (0.2, 0.4, 0.6)]
    found = task_metrics("ruler", seeds)
    assert found["task:ruler"].mean == pytest.approx(0.4)
    assert (found["task:ruler"].n, found["task:ruler"].over) == (3, "seeds")
    half = 4.303 * 0.1 / math.sqrt(3)  # means 0.3, 0.4, 0.5; Student's t with two degrees of freedom
    assert found["task:ruler"].high == pytest.approx(0.4 + half, rel=1e-3)
    assert found["task:ruler"].chance == pytest.approx(0.1)
    assert found["task:ruler@b"].high == pytest.approx(0.4 + 2 * half, rel=1e-3)


def test_equal_names_stay_apart() -> None:
    mixed = evaluation(task("niah", [1.0, 1.0]), task("niah", [0.0, 0.0]), mqar(16, 4, [0.0, 1.0]))
    found = task_metrics("mix", [mixed])
    assert {name: one.mean for name, one in found.items()} == {
        "task:mix": 0.5,
        "task:mix@niah": 1.0,
        "task:mix@niah (2)": 0.0,
        "task:mix@mqar length=16 pairs=4": 0.5,
    }
    assert task_metrics("mix", [evaluation()]) == {}


def test_recall_has_a_metric_for_each_setting_and_their_mean() -> None:
    found = recall_metrics([evaluation(mqar(16, 4, [1.0, 0.0]), mqar(32, 8, [0.0, 0.0]), task("niah", [1.0]))])
    assert {name: one.mean for name, one in found.items()} == {
        "recall@16x4": 0.5,
        "recall@32x8": 0.0,
        "recall": 0.25,
    }
    assert (found["recall"].n, found["recall"].over) == (2, "samples")


def test_texts_have_the_losses_that_were_measured() -> None:
    text = result("text", "text x", score("bits per byte", 2.0, n=7), score("loss", 1.4))
    other = result("text", "text y", score("bits per byte", 9.0), trained=False)
    found = text_metrics([evaluation(text, other)])
    assert list(found) == ["bits_per_byte", "loss"]
    assert (found["bits_per_byte"].mean, found["bits_per_byte"].n) == (2.0, 7)
    assert list(further_metrics("lm", [evaluation(text, other)])) == ["suite:lm@text y, bits per byte"]


def test_further_scores_carry_their_metric_and_leave_out_what_could_not_be_measured() -> None:
    wikitext = result("harness", "wikitext", score("bits per byte", 1.25, per_sample=[], n=62), trained=False)
    further = task("parity length=40", [0.5, 0.7], 0.5, trained=False)
    found = further_metrics("state", [evaluation(further, wikitext)])
    assert list(found) == ["suite:state@parity length=40, accuracy", "suite:state@wikitext, bits per byte"]
    assert found["suite:state@parity length=40, accuracy"].mean == 0.6
    text = found["suite:state@wikitext, bits per byte"]
    assert (text.mean, text.n, text.over) == (1.25, 62, "samples")
    seeds = further_metrics("state", [evaluation(further, wikitext), evaluation(wikitext)])
    assert list(seeds) == ["suite:state@wikitext, bits per byte"]  # one seed alone has parity


def test_several_seeds_of_a_score_above_one() -> None:
    rows = [result("text", "text", score("bits per byte", value), trained=False) for value in (1.2, 1.4)]
    found = further_metrics("lm", [evaluation(row) for row in rows])["suite:lm@text, bits per byte"]
    assert found.mean == pytest.approx(1.3)
    assert found.low < 1.2 < 1.4 < found.high  # not cut off at 1
