"""Variable tracking: the worked example, an independent perfect solver, RULER's chain, order, chance, sizes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from plait.data.tasks import build_task, variable_tracking
from plait.data.tasks.base import TaskDataset, accuracy
from plait.data.tasks.variable_tracking import VariableTracking
from plait.errors import DataError, OptionError


def generate(task: VariableTracking, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.generate(np.random.default_rng(seed), rows)


def test_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    def distinct_words(_: np.random.Generator, rows: int, count: int, tokens: int, alphabet: range) -> np.ndarray:
        return np.array({range(9, 14): [[[11], [9]]], range(14, 19): [[[16]]]}[alphabet], dtype=np.int32)

    monkeypatch.setattr(variable_tracking, "distinct_words", distinct_words)
    monkeypatch.setattr(variable_tracking, "words", lambda *_: np.array([[[5, 8, 8, 4, 7]]], dtype=np.int32))
    monkeypatch.setattr(variable_tracking, "distinct_numbers", lambda *_: np.array([[4, 1]]))
    task = VariableTracking(vocab_size=19, length=18, hops=1, name_tokens=1, value_tokens=1)
    inputs, targets = generate(task, rows=1)
    assert inputs[0].tolist() == [5, 1, 11, 2, 16, 8, 8, 4, 1, 9, 2, 1, 11, 7, 3, 16, 11, 9]
    assert targets[0].tolist() == [-100] * 15 + [11, 9, -100]


TASKS = [
    VariableTracking(),
    VariableTracking.parse("variable_tracking", {"preset": "ruler", "length": 300}),
    VariableTracking(vocab_size=40, length=120, chains=3, hops=2, name_tokens=1, value_tokens=3),
    VariableTracking(vocab_size=60, length=300, haystack="repeat", chains=2, hops=3, name_tokens=3, value_tokens=1),
]


def read(row: list[int], task: VariableTracking) -> tuple[list[list[int]], dict[tuple[int, ...], list[list[int]]], int]:
    """The answer, the chains by value, and the place of the question; each statement is read in its turn."""
    names, values = task.name_tokens, task.value_tokens
    value_of: dict[tuple[int, ...], tuple[int, ...]] = {}
    chains: dict[tuple[int, ...], list[list[int]]] = {}
    place = 0
    while row[place] != 3:
        if row[place] != 1:
            place += 1
            continue
        name = row[place + 1 : place + 1 + names]
        assert row[place + 1 + names] == 2
        assert tuple(name) not in value_of
        place += 2 + names
        if row[place] == 1:
            value = value_of[tuple(row[place + 1 : place + 1 + names])]  # assigned before
            assert chains[value][-1] == row[place + 1 : place + 1 + names]  # the newest of its chain
            place += 1 + names
        else:
            value = tuple(row[place : place + values])
            assert value not in chains
            place += values
        value_of[tuple(name)] = value
        chains.setdefault(value, []).append(name)
    return chains[tuple(row[place + 1 : place + 1 + values])], chains, place


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_perfect_reader_scores_one(task: VariableTracking) -> None:
    inputs, targets = generate(task)
    answers = np.zeros_like(targets)
    for row in range(len(inputs)):
        answer, chains, place = read(inputs[row].tolist(), task)
        assert len(chains) == task.chains
        assert all(len(chain) == task.hops + 1 for chain in chains.values())
        tokens = [token for name in answer for token in name]
        asked = np.flatnonzero(targets[row] != -100)
        assert asked.tolist() == list(range(place + task.value_tokens, place + task.value_tokens + len(tokens)))
        answers[row, asked] = tokens
    assert accuracy(torch.from_numpy(answers), torch.from_numpy(targets)) == 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_layout(task: VariableTracking) -> None:
    inputs, targets = generate(task)
    third = (task.vocab_size - 4) // 3
    asked = targets != -100
    assert inputs.shape == targets.shape == (64, task.length)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets[:, :-1][asked[:, :-1]] == inputs[:, 1:][asked[:, :-1]]).all()  # teacher-forced
    assert (asked.sum(1) == (task.hops + 1) * task.name_tokens).all()
    assert ((targets[asked] >= 4 + third) & (targets[asked] < 4 + 2 * third)).all()
    assert ((inputs == 2).sum(1) == task.chains * (task.hops + 1)).all()
    assert ((inputs == 1).sum(1) == task.chains * (2 * task.hops + 1)).all()
    assert (inputs == 0).sum(1).max() < (1 if task.haystack == "noise" else min(16, third))
    noise = (inputs >= 4) & (inputs < 4 + third)
    if task.haystack == "repeat":
        sentence = list(range(4, 4 + min(16, third)))
        for row in range(len(inputs)):
            hay = inputs[row][noise[row]].tolist()
            assert hay == sentence * (len(hay) // len(sentence))


def test_the_preset_is_rulers_chain() -> None:
    task = VariableTracking.parse("variable_tracking", {"preset": "ruler"})
    assert (task.chains, task.hops, task.haystack) == (1, 4, "repeat")  # five names


def test_statements_are_spread_over_the_row_and_chains_are_mixed() -> None:
    task = VariableTracking(length=200, chains=2, hops=3, name_tokens=1, value_tokens=1)
    inputs, _ = generate(task, 2000)
    # eight statements among gaps 0..n: the first stands, on average, a ninth of the way
    noise = int(((inputs[0] >= 4) & (inputs[0] < 88)).sum())
    assert (inputs == 1).argmax(1).mean() == pytest.approx((noise + 2) / 9 - 1, rel=0.05)
    starts_second = [row[row.index(1) + 3] != row[-5] for row in inputs.tolist()]  # question: 3 value n n n n
    assert np.mean(starts_second) == pytest.approx(0.5, abs=0.04)
    mixed = 0
    for row in inputs.tolist():
        mark = [place for place, token in enumerate(row) if token == 2]
        mixed += sum(row[place + 1] != 1 for place in mark[:4]) == 2  # both chains have begun in the first half
    assert mixed / 2000 == pytest.approx(1 - 2 / 70, abs=0.02)  # 8 choose 4 arrangements, two of them not mixed


def test_chance() -> None:
    task = VariableTracking(vocab_size=33, length=60, hops=2)
    assert task.chance == 1 / 9  # noise 4..12, names 13..21, values 22..32
    _, targets = generate(task, 4000)
    guess = np.random.default_rng(1).integers(13, 22, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.01)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        # statements of 6 + 4 x 7, five noise ids, a question of 13
        ({"length": 51}, DataError, "length=51 is too short for 5 statements.* use length >= 52"),
        ({"vocab_size": 13, "name_tokens": 1}, DataError, "5 names are needed.* has only 3 of name_tokens=1"),
        (
            {"vocab_size": 10, "name_tokens": 4, "value_tokens": 1, "chains": 3},
            DataError,
            "has only 2 of value_tokens=1",
        ),
        ({"vocab_size": 6}, DataError, "use vocab_size >= 7"),
        ({"hops": 0}, DataError, "hops=0 must be at least 1"),
        ({"haystack": "needles"}, OptionError, "must be one of noise, repeat"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        VariableTracking(**options)


def test_smallest_length_that_fits() -> None:
    inputs, _ = generate(VariableTracking(length=52))
    assert ((inputs == 2).sum(1) == 5).all()


def test_rows_depend_on_seed_and_index_alone() -> None:
    task = build_task("variable_tracking", {"length": 64})
    one, other = TaskDataset(task, 1000, 3), TaskDataset(task, 300, 3)
    assert one[299]["input_ids"].tolist() == other[299]["input_ids"].tolist()
    assert one[0]["input_ids"].tolist() != TaskDataset(task, 300, 4)[0]["input_ids"].tolist()


def test_rows_are_made_fast() -> None:
    started = time.perf_counter()
    generate(VariableTracking(length=512, chains=3), rows=256)
    assert time.perf_counter() - started < 0.5  # about 0.02 s on an idle core
