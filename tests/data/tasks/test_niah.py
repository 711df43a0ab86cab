"""Needles in a haystack: the worked example, RULER's settings, an independent perfect solver, places, chance, sizes."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from plait.data.tasks import build_task, niah
from plait.data.tasks.base import TaskDataset, accuracy
from plait.data.tasks.niah import MultiKey, MultiQuery, MultiValue, NeedleInHaystack
from plait.errors import DataError, OptionError


def generate(task: NeedleInHaystack, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.generate(np.random.default_rng(seed), rows)


def test_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def words(_: np.random.Generator, rows: int, count: int, tokens: int, alphabet: range) -> np.ndarray:
        drawn = {range(3, 8): [[[4, 7, 3, 3, 6, 5]]], range(13, 19): [[[14], [17]]]}
        return np.array(drawn[alphabet], dtype=np.int32)

    monkeypatch.setattr(niah, "distinct_words", lambda *_: np.array([[[9], [8]]], dtype=np.int32))
    monkeypatch.setattr(niah, "words", words)
    monkeypatch.setattr(niah, "distinct_numbers", lambda *_: np.array([[2, 5]]))
    task = NeedleInHaystack(vocab_size=19, length=15, keys=2, key_tokens=1, value_tokens=1)
    inputs, targets = generate(task, rows=1)
    assert inputs[0].tolist() == [4, 7, 1, 9, 14, 3, 3, 6, 1, 8, 17, 5, 2, 9, 14]
    assert targets[0].tolist() == [-100] * 13 + [14, -100]


TASKS = [
    *[NeedleInHaystack.parse("niah", {"preset": preset}) for preset in NeedleInHaystack.presets],
    NeedleInHaystack(vocab_size=19, length=30, keys=2, key_tokens=1, value_tokens=1),
    NeedleInHaystack(vocab_size=40, length=150, haystack="needles", keys=2, values=3, queries=2),
    NeedleInHaystack(vocab_size=60, length=200, haystack="repeat", keys=3, values=2, queries=2, value_tokens=3),
    NeedleInHaystack(keys=3, depth=0.5),
]


def look_up(row: list[int], task: NeedleInHaystack) -> dict[int, int]:
    """What follows at each place of an answer, read from the needles alone."""
    memory: dict[tuple[int, ...], list[int]] = {}
    answers: dict[int, int] = {}
    for place, token in enumerate(row):
        end = place + 1 + task.key_tokens
        key = tuple(row[place + 1 : end])
        if token == 1:
            memory.setdefault(key, []).extend(row[end : end + task.value_tokens])
        if token == 2:
            answers.update({end - 1 + step: value for step, value in enumerate(memory[key])})
    return answers


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_perfect_look_up_scores_one(task: NeedleInHaystack) -> None:
    inputs, targets = generate(task)
    answers = np.zeros_like(targets)
    for row in range(len(inputs)):
        found = look_up(inputs[row].tolist(), task)
        assert sorted(found) == np.flatnonzero(targets[row] != -100).tolist()
        answers[row, list(found)] = list(found.values())
    assert accuracy(torch.from_numpy(answers), torch.from_numpy(targets)) == 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_layout(task: NeedleInHaystack) -> None:
    inputs, targets = generate(task)
    asked = targets != -100
    third = (task.vocab_size - 3) // 3
    assert inputs.shape == targets.shape == (64, task.length)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets[:, :-1][asked[:, :-1]] == inputs[:, 1:][asked[:, :-1]]).all()  # teacher-forced
    assert (asked.sum(1) == task.queries * task.values * task.value_tokens).all()
    assert ((inputs == 2).sum(1) == task.queries).all()
    question = task.queries * (1 + task.key_tokens + task.values * task.value_tokens)
    assert (inputs[:, -question] == 2).all()
    assert targets[asked].min() >= 3 + 2 * third
    assert inputs.max() < task.vocab_size
    needle = 1 + task.key_tokens + task.value_tokens
    needles = max(task.keys, task.queries) * task.values
    marks = (inputs == 1).sum(1)
    noise = ((inputs >= 3) & (inputs < 3 + third)).sum(1)
    unit = {"noise": 1, "repeat": min(16, third), "needles": needle}[task.haystack]
    if task.haystack == "needles":
        assert (noise == 0).all()
        assert (marks * needle == task.length - question - (inputs == 0).sum(1)).all()
    else:
        assert (marks == needles).all()
        assert (noise == task.length - question - needles * needle - (inputs == 0).sum(1)).all()
    assert (inputs == 0).sum(1).max() < unit  # as large a haystack as fits
    for row in inputs.tolist():
        fillers = row.count(0)
        assert row[:fillers] == [0] * fillers
        keys = [tuple(row[p + 1 : p + 1 + task.key_tokens]) for p, token in enumerate(row) if token == 1]
        assert len(set(keys)) == len(keys) - max(task.keys, task.queries) * (task.values - 1)


def test_presets_are_the_tasks_of_ruler() -> None:
    """The table of RULER's needle tasks: haystack, keys, values, queries."""
    tasks = {name: NeedleInHaystack.parse("niah", {"preset": name}) for name in NeedleInHaystack.presets}
    found = {name: (task.haystack, task.keys, task.values, task.queries) for name, task in tasks.items()}
    assert found == {
        "single_1": ("repeat", 1, 1, 1),
        "single_2": ("noise", 1, 1, 1),
        "single_3": ("noise", 1, 1, 1),
        "multikey_1": ("noise", 4, 1, 1),
        "multikey_2": ("needles", 1, 1, 1),
        "multikey_3": ("needles", 1, 1, 1),
        "multivalue": ("noise", 1, 4, 1),
        "multiquery": ("noise", 1, 1, 4),
    }
    assert (tasks["single_3"].key_tokens, tasks["single_3"].value_tokens) == (2, 8)  # word to UUID
    assert (tasks["multikey_3"].key_tokens, tasks["multikey_3"].value_tokens) == (8, 8)  # UUID to UUID
    inputs, _ = generate(tasks["multiquery"])
    assert ((inputs == 1).sum(1) == 4).all()  # k := max(k, q)


def test_names_of_the_catalogue() -> None:
    assert build_task("niah", {}) == NeedleInHaystack()
    assert build_task("niah_multikey", {}) == MultiKey(keys=4)
    assert build_task("niah_multiquery", {"length": 300}) == MultiQuery(queries=4, length=300)
    assert build_task("niah_multivalue", {}) == MultiValue(values=4)


def test_the_repeated_sentence() -> None:
    task = NeedleInHaystack(vocab_size=15, length=26, haystack="repeat", key_tokens=1, value_tokens=1)
    inputs, _ = generate(task)  # noise 3..6; five units of four, a needle and a question of three
    for row in inputs.tolist():
        place = row.index(1)
        assert place % 4 == 0
        assert row[:place] + row[place + 3 : -3] == [3, 4, 5, 6] * 5


def test_needles_stand_in_any_gap_equally_often_and_never_touch() -> None:
    task = NeedleInHaystack(vocab_size=60, length=16, keys=2, key_tokens=1, value_tokens=1)
    inputs, _ = generate(task, 20_000)  # seven noise ids, two needles of three, a question
    marks = np.argwhere(inputs == 1)[:, 1].reshape(-1, 2)
    gaps = marks - [0, 3]
    assert (gaps[:, 1] > gaps[:, 0]).all()
    pairs = np.unique(gaps, axis=0, return_counts=True)[1]
    assert len(pairs) == 8 * 7 // 2
    assert stats.chisquare(pairs).pvalue > 1e-3
    first_asked = inputs[np.arange(20_000), marks[:, 0] + 1] == inputs[:, 14]
    assert first_asked.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_depth_places_the_queried_needle(depth: float, place: int) -> None:
    # 20 noise ids, one needle of three, a question of three
    task = NeedleInHaystack(length=26, key_tokens=1, value_tokens=1, depth=depth)
    inputs, _ = generate(task)
    assert (inputs[:, place] == 1).all()
    task = NeedleInHaystack(length=32, key_tokens=1, value_tokens=1, depth=depth, keys=3)
    inputs, _ = generate(task)
    for row in inputs.tolist():
        needles = [p for p, token in enumerate(row) if token == 1]
        queried = next(p for p in needles if row[p + 1] == row[-2])
        assert queried - 3 * needles.index(queried) == place
        assert all(later - earlier > 3 for earlier, later in pairwise(needles))  # each in a gap of its own


def test_values_of_a_key_are_asked_in_their_order_in_the_row() -> None:
    inputs, targets = generate(MultiValue(length=120, key_tokens=1, value_tokens=1))
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        shown = [row[place + 2] for place, token in enumerate(row) if token == 1]
        assert [token for token in target if token != -100] == shown


def test_chance() -> None:
    task = NeedleInHaystack(vocab_size=26, length=40)
    assert task.chance == 1 / 9  # noise 3..9, keys 10..16, values 17..25
    _, targets = generate(task, 4000)
    guess = np.random.default_rng(1).integers(17, 26, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.015)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"length": 10}, DataError, "too short for 1 needles of 5 .* a question of 5; use length >= 11"),
        ({"length": 25, "haystack": "repeat"}, DataError, "use length >= 26"),
        ({"length": 300, "vocab_size": 12, "haystack": "needles"}, DataError, "59 keys are needed.* has only 9"),
        ({"vocab_size": 5}, DataError, "use vocab_size >= 6"),
        ({"keys": 0}, DataError, "keys=0 must be at least 1"),
        ({"depth": 0.5, "values": 2}, DataError, "depth needs one queried needle"),
        ({"depth": 1.5}, OptionError, "depth=1.5 must be in 0..1"),
        ({"haystack": "essay"}, OptionError, "must be one of noise, repeat, needles"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        NeedleInHaystack(**options)


def test_smallest_sizes_that_fit() -> None:
    inputs, _ = generate(NeedleInHaystack(length=11))
    assert ((inputs == 1).sum(1) == 1).all()
    inputs, _ = generate(NeedleInHaystack(length=26, haystack="repeat"))
    assert ((inputs == 1).sum(1) == 1).all()
    inputs, targets = generate(NeedleInHaystack(vocab_size=6, length=7, key_tokens=1, value_tokens=1))
    assert {tuple(row) for row in inputs.tolist()} == {(1, 4, 5, 3, 2, 4, 5), (3, 1, 4, 5, 2, 4, 5)}
    assert (targets == [-100, -100, -100, -100, -100, 5, -100]).all()


def test_rows_depend_on_seed_and_index_alone() -> None:
    task = build_task("niah", {"length": 64})
    one, other = TaskDataset(task, 1000, 3), TaskDataset(task, 300, 3)
    assert one[299]["input_ids"].tolist() == other[299]["input_ids"].tolist()
    assert one[0]["input_ids"].tolist() != TaskDataset(task, 300, 4)[0]["input_ids"].tolist()


@pytest.mark.parametrize("haystack", ["noise", "repeat", "needles"])
def test_rows_are_made_fast(haystack: Any) -> None:
    started = time.perf_counter()
    generate(NeedleInHaystack(length=512, haystack=haystack, keys=4, values=2), rows=256)
    assert time.perf_counter() - started < 0.5  # about 0.02 s on an idle core
