"""Key-value retrieval: the worked example, an independent perfect solver, layout, chance, sizes."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch

from plait import catalog
from plait.data.tasks import build_task, key_value
from plait.data.tasks.base import TaskDataset, accuracy
from plait.data.tasks.key_value import KeyValueRetrieval
from plait.errors import DataError


def generate(task: KeyValueRetrieval, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.generate(np.random.default_rng(seed), rows)


def test_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_value, "distinct_words", lambda *_: np.array([[[4, 6], [4, 7]]], dtype=np.int32))
    monkeypatch.setattr(key_value, "words", lambda *_: np.array([[[9, 11], [8, 9]]], dtype=np.int32))
    monkeypatch.setattr(key_value, "distinct_numbers", lambda *_: np.array([[0]]))
    inputs, targets = generate(KeyValueRetrieval(vocab_size=12, length=19, pairs=2), rows=1)
    assert inputs[0].tolist() == [0, 1, 4, 6, 2, 9, 11, 1, 4, 7, 2, 8, 9, 3, 4, 6, 2, 9, 11]
    assert targets[0].tolist() == [-100] * 16 + [9, 11, -100]


TASKS = [
    KeyValueRetrieval(),
    KeyValueRetrieval(vocab_size=12, length=31, pairs=3, queries=2),
    KeyValueRetrieval(vocab_size=64, length=100, key_tokens=1, value_tokens=1, queries=4),
    KeyValueRetrieval(vocab_size=14, length=200, pairs=20, key_tokens=3, value_tokens=4),
    KeyValueRetrieval(vocab_size=8, length=64, key_tokens=2, value_tokens=1),  # only four keys
]


def look_up(row: list[int], key_tokens: int, value_tokens: int) -> dict[int, int]:
    """What follows at each place of an answer, read from the pairs alone."""
    memory: dict[tuple[int, ...], list[int]] = {}
    answers: dict[int, int] = {}
    place = 0
    while place < len(row):
        mark, key = row[place], tuple(row[place + 1 : place + 1 + key_tokens])
        value = place + 1 + key_tokens  # the mark between
        if mark == 1:
            assert key not in memory
            memory[key] = row[value + 1 : value + 1 + value_tokens]
        if mark == 3:
            answers.update({value + step: memory[key][step] for step in range(value_tokens)})
        assert row[value] == 2 or mark == 0
        place = place + 1 if mark == 0 else value + 1 + value_tokens
    return answers


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_perfect_look_up_scores_one(task: KeyValueRetrieval) -> None:
    inputs, targets = generate(task)
    answers = np.zeros_like(targets)
    for row in range(len(inputs)):
        found = look_up(inputs[row].tolist(), task.key_tokens, task.value_tokens)
        assert sorted(found) == np.flatnonzero(targets[row] != -100).tolist()
        answers[row, list(found)] = list(found.values())
    assert accuracy(torch.from_numpy(answers), torch.from_numpy(targets)) == 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_layout(task: KeyValueRetrieval) -> None:
    inputs, targets = generate(task)
    asked = targets != -100
    assert inputs.shape == targets.shape == (64, task.length)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets[:, :-1][asked[:, :-1]] == inputs[:, 1:][asked[:, :-1]]).all()  # teacher-forced
    assert not asked[:, -1].any()
    assert (asked.sum(1) == task.queries * task.value_tokens).all()
    assert ((inputs == 3).sum(1) == task.queries).all()
    middle = 4 + (task.vocab_size - 4) // 2
    assert targets[asked].min() >= middle
    assert inputs.max() < task.vocab_size
    for row in inputs.tolist():
        fillers = row.count(0)
        assert row[:fillers] == [0] * fillers  # only in front
        places = [place for place, token in enumerate(row) if token == 3]
        keys = [tuple(row[place + 1 : place + 1 + task.key_tokens]) for place in places]
        assert len(set(keys)) == task.queries
        assert all(4 <= token < middle for key in keys for token in key)


def test_as_many_pairs_as_fit() -> None:
    inputs, _ = generate(KeyValueRetrieval(length=127))  # 21 sentences of six tokens, one of them the query
    assert ((inputs == 1).sum(1) == 20).all()
    inputs, _ = generate(KeyValueRetrieval(length=126))
    assert ((inputs == 1).sum(1) == 20).all()
    inputs, _ = generate(KeyValueRetrieval(length=125))
    assert ((inputs == 1).sum(1) == 19).all()
    inputs, _ = generate(KeyValueRetrieval(vocab_size=8, length=128))  # keys of 4 and 5 only
    assert ((inputs == 1).sum(1) == 4).all()


def test_every_pair_is_asked_equally_often() -> None:
    inputs, _ = generate(KeyValueRetrieval(length=30, pairs=4), rows=4000)
    pairs = inputs[:, :24].reshape(-1, 4, 6)[:, :, 1:3]
    asked = (pairs == inputs[:, None, 25:27]).all(2).argmax(1)
    assert np.bincount(asked) / 4000 == pytest.approx(np.full(4, 0.25), abs=0.03)


def test_chance() -> None:
    task = KeyValueRetrieval(vocab_size=21, length=60)
    assert task.chance == 1 / 9  # keys 4..11, values 12..20
    _, targets = generate(task, 4000)
    guess = np.random.default_rng(1).integers(12, 21, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.015)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 17, "pairs": 2}, "length=17 is too short for pairs=2 and queries=1 .* use length >= 18"),
        ({"length": 11}, "use length >= 12"),
        ({"vocab_size": 8, "pairs": 5}, "has only 4 different keys of key_tokens=2 for pairs=5"),
        ({"vocab_size": 5}, "use vocab_size >= 6"),
        ({"pairs": 2, "queries": 3}, "pairs=2 must be at least queries=3"),
        ({"value_tokens": 0}, "value_tokens=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        KeyValueRetrieval(**options)


def test_smallest_sizes_that_fit() -> None:
    inputs, targets = generate(KeyValueRetrieval(vocab_size=6, length=12), rows=1)
    assert inputs.tolist() == [[1, 4, 4, 2, 5, 5, 3, 4, 4, 2, 5, 5]]
    assert targets.tolist() == [[-100] * 9 + [5, 5, -100]]


def test_rows_depend_on_seed_and_index_alone() -> None:
    task = build_task("key_value", {"length": 40})
    one, other = TaskDataset(task, 1000, 3), TaskDataset(task, 300, 3)
    assert one[299]["input_ids"].tolist() == other[299]["input_ids"].tolist()
    assert one[0]["input_ids"].tolist() != TaskDataset(task, 300, 4)[0]["input_ids"].tolist()


def test_rows_are_made_fast() -> None:
    started = time.perf_counter()
    generate(KeyValueRetrieval(length=512), rows=256)
    assert time.perf_counter() - started < 0.5  # about 0.03 s on an idle core


def test_catalogue_knows_the_task() -> None:
    assert catalog.get("key_value", "task").load() is KeyValueRetrieval
