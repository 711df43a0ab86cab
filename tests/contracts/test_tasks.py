"""Every task of the catalogue keeps the contract of ``plait.data.tasks.base.Task``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plait import catalog
from plait.data.corpus import SPLITS
from plait.data.tasks import Task, TaskDataset
from plait.data.tasks.base import IGNORED, Ids
from plait.evaluation.batching import Batches
from plait.evaluation.measurement import silent
from plait.evaluation.subject import Subject
from plait.evaluation.tasks import TaskMeasurement

TASKS = catalog.names("task")
ROWS = 300  # more than one block of rows that are generated together


@cache
def small(name: str) -> Task:
    kind: type[Task] = catalog.get(name, "task").load()
    return kind.small()


@cache
def rows(task: Task, split: str = "test", seed: int = 0, count: int = ROWS) -> list[tuple[Tensor, Tensor]]:
    dataset = TaskDataset(task, count, seed, split)
    return [(row["input_ids"], row["targets"]) for row in (dataset[index] for index in range(count))]


def same(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_rows_come_from_the_seed(task: Task) -> None:
    """A row depends on seed, split and number alone, in whatever order rows are read."""
    told = rows(task)
    again = TaskDataset(task, ROWS, 0, "test")
    for index in (ROWS - 1, 3, 257, 0):
        assert same(told[index], tuple(again[index].values())), f"row {index} is another one the second time"  # type: ignore[arg-type]
    few = TaskDataset(task, 4, 0, "test")
    assert same(told[3], tuple(few[3].values())), "a row depends on how many there are"  # type: ignore[arg-type]
    other = rows(task, "train", seed=1)
    changed = sum(not same(a, b) for a, b in zip(rows(task, "train"), other, strict=True))
    assert changed > ROWS / 2, "another seed gives the same rows"


def check_ids(task: Task) -> None:
    """Inputs and targets are ids of the vocabulary, and every row asks for something."""
    for inputs, targets in rows(task):
        wanted = targets[targets != IGNORED]
        assert inputs.shape == targets.shape
        assert len(wanted), "a row asks for nothing"
        for ids in (inputs, wanted):
            assert 0 <= int(ids.min()) <= int(ids.max()) < task.vocab_size, "an id lies outside of the vocabulary"


def check_splits(task: Task) -> None:
    """No row of the test split was ever learnt, also for the same seed."""
    found = {split: {tuple(inputs.tolist()) for inputs, _ in rows(task, split)} for split in SPLITS}
    for a in SPLITS:
        for b in SPLITS:
            assert a == b or not found[a] & found[b], f"{a} and {b} share rows"


def check_lengths(task: Task) -> None:
    """Rows are as long as the task says, and as long as asked."""
    assert max(len(inputs) for inputs, _ in rows(task)) <= task.longest
    kind = type(task)
    for length in (64, 96):
        sized = kind(**{**_options(task), **kind.at_length(length)})
        assert length - 1 <= sized.longest <= length, f"asked for {length} tokens"
        assert all(len(inputs) == sized.longest for inputs, _ in rows(sized, count=8))


def check_chance(task: Task) -> None:
    """A uniform guess among the answers that occur scores what the task calls chance, and so does the same word."""
    wanted = torch.cat([targets[targets != IGNORED] for _, targets in rows(task, count=2000)])
    possible = wanted.unique()
    assert task.chance == pytest.approx(1 / len(possible), rel=0.05), f"{len(possible)} answers occur"
    guesses = possible[torch.randint(len(possible), wanted.shape, generator=torch.Generator().manual_seed(0))]
    spread = (task.chance * (1 - task.chance) / len(wanted)) ** 0.5
    assert abs((guesses == wanted).double().mean().item() - task.chance) < 5 * spread
    commonest = wanted.bincount().max().item() / len(wanted)
    assert commonest < 3 * task.chance + 5 * spread, "one answer is right too often"


class Oracle(nn.Module):
    """Says what stands in a table for each row; with ``always``, that one id."""

    device = torch.device("cpu")

    def __init__(self, task: Task, always: int | None = None) -> None:
        super().__init__()
        self.vocab_size, self.always = task.vocab_size, always
        self.answers = {tuple(inputs.tolist()): targets.clamp(min=0) for inputs, targets in rows(task, count=40)}

    def get_input_embeddings(self) -> nn.Embedding:
        return nn.Embedding(self.vocab_size, 1)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        said = torch.stack([self.answers[tuple(row.tolist())] for row in input_ids])
        said = said if self.always is None else torch.full_like(said, self.always)
        return SimpleNamespace(logits=nn.functional.one_hot(said, self.vocab_size).float())


def check_measured(task: Task) -> None:
    """As a measurement: who knows all answers scores 1, who says one id the share of rows' queries that it answers."""
    measurement = TaskMeasurement("task", task, 40)

    def score(model: nn.Module) -> Any:
        subject = Subject("oracle", model, None, "")  # type: ignore[arg-type]
        return measurement.scores(subject, Batches(16, subject.device), silent)[0]

    assert score(Oracle(task)).score == 1.0
    first = rows(task, count=40)[0][1]
    said = int(first[first != IGNORED][0])
    shares = [(targets[targets != IGNORED] == said).double().mean().item() for _, targets in rows(task, count=40)]
    constant = score(Oracle(task, said))
    assert constant.score == pytest.approx(float(np.mean(shares)))
    assert constant.score < 0.75
    assert (constant.n, constant.chance) == (40, task.chance)


CHECKS = [check_rows_come_from_the_seed, check_ids, check_splits, check_lengths, check_chance, check_measured]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", TASKS)
def test_contract(name: str, check: Any) -> None:
    check(small(name))


def _options(task: Task) -> dict[str, Any]:
    return dict(vars(task))


# ---- planted faults: each check sees the fault that it is there for


@dataclass(frozen=True)
class Copy(Task):
    """The first half of a row again; with a ``fault``, wrong in one way."""

    vocab_size: int = 8
    length: int = 32
    fault: str = ""

    @property
    def chance(self) -> float:
        return 1 / self.vocab_size / (2 if self.fault == "chance" else 1)

    def generate_split(self, rng: np.random.Generator, rows: int, split: str) -> tuple[Ids, Ids]:
        if self.fault == "seed":
            rng = np.random.default_rng()
        if self.fault == "splits":
            rng = np.random.default_rng(int(rng.integers(4)) if split == "train" else 0)
        return self.generate(rng, rows)

    def generate(self, rng: np.random.Generator, rows: int) -> tuple[Ids, Ids]:
        half = (self.length + (4 if self.fault == "lengths" else 0)) // 2
        words = rng.integers(0, self.vocab_size, (rows, half), dtype=np.int32)
        if self.fault == "constant":
            words[:, 1:] = np.where(rng.random((rows, half - 1)) < 0.6, 3, words[:, 1:])
        inputs = np.concatenate([words, words], axis=1)
        targets = np.full_like(inputs, IGNORED)
        targets[:, half:-1] = words[:, 1:] + (self.fault == "ids")
        return inputs, targets


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_a_sound_task_passes(check: Any) -> None:
    check(Copy())


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("seed", check_rows_come_from_the_seed, "another one the second time"),
        ("ids", check_ids, "outside of the vocabulary"),
        ("splits", check_splits, "share rows"),
        ("lengths", check_lengths, ""),
        ("chance", check_chance, "answers occur"),
        ("constant", check_chance, "right too often"),
    ],
)
def test_a_planted_fault_is_seen(fault: str, check: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check(Copy(fault=fault))


def test_an_evaluation_that_asks_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.evaluation import tasks

    right = tasks.predict
    monkeypatch.setattr(tasks, "predict", lambda *arguments: right(*arguments).roll(1, dims=1))
    with pytest.raises(AssertionError):
        check_measured(Copy())
