"""State tracking: worked examples, answers from independent evaluation of each prefix, lengths, word problems."""

from __future__ import annotations

import dataclasses
import re
import time
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from plait import catalog
from plait.data.tasks import build_task
from plait.data.tasks.base import Task, TaskDataset, accuracy, per_position_accuracy
from plait.data.tasks.state_tracking import CycleNavigation, ModularArithmetic, Parity, StateTracking
from plait.data.tasks.word_problems import WordProblem, multiplication_table
from plait.errors import DataError, OptionError


class Rigged(np.random.Generator):
    """A generator that returns given draws, whatever their shape."""

    def __init__(self, *draws: object) -> None:
        super().__init__(np.random.PCG64(0))
        self.draws = iter(draws)

    def integers(self, low: object, high: object, size: object = None, **_: object) -> np.ndarray:  # type: ignore[override]
        shape = np.shape(high) if size is None else size
        return np.array(next(self.draws), np.int64).reshape(shape)  # type: ignore[arg-type]


def generate(task: Task, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.generate(np.random.default_rng(seed), rows)


def test_parity_by_hand() -> None:
    inputs, targets = Parity(length=4).generate(Rigged([1, 0, 1, 1]), 1)
    assert inputs.tolist() == [[1, 0, 1, 1]]
    assert targets.tolist() == [[1, 1, 0, 1]]


def test_cycle_by_hand() -> None:
    """The example of the published code: right, left, stay, left, left ends at -2, which is 3."""
    task = CycleNavigation(length=5)
    _, targets = task.generate(Rigged([2, 0, 1, 0, 0]), 1)
    assert targets.tolist() == [[1, 0, 0, 4, 3]]
    assert CycleNavigation(length=5, cycle=3).generate(Rigged([2, 0, 1, 0, 0]), 1)[1].tolist() == [[1, 0, 0, 2, 1]]


@pytest.mark.parametrize(
    ("numbers", "operators", "answers"),
    [
        ([1, 2, 3], [0, 2], [1, 3, 2]),  # 1 + 2 * 3, an example of the published code
        ([1, 1, 1], [1, 1], [1, 0, 4]),  # 1 - 1 - 1, another
        ([0, 1, 4, 3, 2], [2, 0, 2, 1], [0, 0, 4, 2, 0]),  # 0 * 1 + 4 * 3 - 2, the third
        ([2, 3, 4], [1, 2], [2, 4, 0]),  # 2 - 3 * 4 = -10
    ],
)
def test_arithmetic_by_hand(numbers: list[int], operators: list[int], answers: list[int]) -> None:
    inputs, targets = ModularArithmetic(length=2 * len(numbers) - 1).generate(Rigged(numbers, operators), 1)
    assert inputs[0, ::2].tolist() == numbers
    assert inputs[0, 1::2].tolist() == [5 + operator for operator in operators]
    assert targets[0, ::2].tolist() == answers
    assert (targets[0, 1::2] == -100).all()


def test_brackets_by_hand() -> None:
    """(2 * (1 - 4)) = 2 * -3 = -6, modulo 5 it is 4."""
    # no short expression at first; the left part has 1 token, operator *; then 2; 1 and -; then 1 and 4
    draws = [[], [1], [2], [2], [1], [1], [1, 4], [], []]
    inputs, targets = ModularArithmetic(length=9, brackets=True).generate(Rigged(*draws), 1)
    assert text(inputs[0]) == "(2*(1-4))"
    assert targets.tolist() == [[-100] * 7 + [2, 4]]


def text(ids: np.ndarray) -> str:
    return "".join("01234+-*()"[i] for i in ids)


TASKS = [
    Parity(),
    CycleNavigation(),
    CycleNavigation(cycle=7),
    ModularArithmetic(length=21),
    ModularArithmetic(length=20, brackets=True),
    *(ModularArithmetic(length=length, brackets=True) for length in range(1, 9)),
]


def evaluated(task: StateTracking, prefix: np.ndarray) -> int | None:
    """The answer after a prefix, by other means than the task's; None where it has none."""
    match task:
        case Parity():
            return text(prefix).count("1") % 2
        case CycleNavigation():
            return (text(prefix).count("2") - text(prefix).count("0")) % task.cycle
        case ModularArithmetic(brackets=False):
            return None if prefix[-1] >= 5 else eval(text(prefix)) % 5
    opened, string = [], text(prefix)
    if string[-1] != ")":
        return None if len(string) < task.length else eval(string) % 5
    for place, letter in enumerate(string):
        if letter == "(":
            opened.append(place)
        elif letter == ")":
            start = opened.pop()
    return eval(string[start:]) % 5


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_answer_is_the_value_of_its_prefix(task: StateTracking) -> None:
    inputs, targets = generate(task, 20)
    for row, wanted in zip(inputs, targets, strict=True):
        found = [evaluated(task, row[: t + 1]) for t in range(task.length)]
        assert [-100 if answer is None else answer for answer in found] == wanted.tolist()
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.min() >= 0
    assert max(inputs.max(), targets.max()) < task.vocab_size


@pytest.mark.parametrize("task", [*TASKS, WordProblem()], ids=str)
def test_last_asks_once(task: StateTracking) -> None:
    inputs, targets = generate(task)
    same, last = generate(dataclasses.replace(task, targets="last"))
    assert (same == inputs).all()
    assert (last[:, :-1] == -100).all()
    assert (last[:, -1] == targets[:, -1]).all()


def test_bracketed_strings_follow_the_grammar() -> None:
    operand = r"(?:E|-?\d)"
    for row in generate(ModularArithmetic(length=30, brackets=True), 300)[0]:
        string, found = text(row), 1
        while found:
            string, found = re.subn(rf"\({operand}[-+*]{operand}\)|\(-?\d\)", "E", string)
        assert string == "E"


def test_lengths_of_left_parts_are_even() -> None:
    inputs, _ = generate(ModularArithmetic(length=9, brackets=True), 6000)  # left and right share 6 tokens
    left = []
    for row in inputs:
        depth = np.cumsum((row == 8).astype(int) - (row == 9))
        operators = [t for t in range(2, 7) if depth[t] == 1 and 5 <= row[t] <= 7]
        left.append(operators[0] - 1)
    assert stats.chisquare(np.bincount(left, minlength=6)[1:6]).pvalue > 1e-3


@pytest.mark.parametrize("task", [Parity(), CycleNavigation(), ModularArithmetic(length=41), WordProblem(group="S3")])
def test_draws_are_even_and_chance_is_what_a_guess_scores(task: StateTracking) -> None:
    inputs, targets = generate(task, 4000)
    kinds = 5 if isinstance(task, ModularArithmetic) else task.symbols
    counts = np.bincount(inputs[:, ::2].ravel(), minlength=kinds)
    assert len(counts) == kinds
    assert stats.chisquare(counts).pvalue > 1e-3
    guess = np.random.default_rng(1).integers(0, task.states, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.01)


@pytest.mark.parametrize(
    ("group", "order", "commutes"),
    [("S3", 6, False), ("A5", 60, False), ("S5", 120, False), ("Z60", 60, True)] + [("A4xZ5", 60, False)],
)
def test_groups(group: str, order: int, commutes: bool) -> None:
    table = multiplication_table(group)
    everything = np.arange(order)
    assert table.shape == (order, order)
    assert (np.sort(table, axis=0) == everything[:, None]).all()  # closed, and each has an inverse
    assert (np.sort(table, axis=1) == everything).all()
    assert (table[0] == everything).all()
    assert (table[:, 0] == everything).all()
    assert (table[table[:, :, None], everything] == table[everything[:, None, None], table]).all()  # associative
    assert (table == table.T).all() == commutes


def element_orders(group: str) -> list[int]:
    table, counts = multiplication_table(group), []
    for element in range(len(table)):
        power, order = element, 1
        while power:
            power, order = table[power, element], order + 1
        counts.append(order)
    return [counts.count(order) for order in range(1, 7)]


def test_orders_of_elements_tell_the_groups_apart() -> None:
    """Elements of order 1 to 6, known from any text on these groups."""
    assert element_orders("S3") == [1, 3, 2, 0, 0, 0]
    assert element_orders("A5") == [1, 15, 20, 0, 24, 0]
    assert element_orders("S5") == [1, 25, 20, 30, 24, 20]
    assert element_orders("Z60") == [1, 1, 2, 2, 4, 2]
    assert element_orders("A4xZ5") == [1, 3, 8, 0, 4, 0]  # of A4 3 and 8, of Z5 4, the others have 10 and 15


def test_word_problem_by_hand() -> None:
    """In S3 the ids are 012 021 102 120 201 210; a b applies b first: 021 after 102 sends 0 to 1 to 2, and so on."""
    _, targets = WordProblem(group="S3", length=4).generate(Rigged([1, 2, 2, 4]), 1)
    # 021 o 102 = (0->1->2, 1->0->0, 2->2->1) = 201, id 4; again with 102 gives back 021; 021 o 201 = 102
    assert targets.tolist() == [[1, 4, 1, 2]]
    assert WordProblem(group="S3").chance == 1 / 6


def test_word_problem_is_composition() -> None:
    elements = list(permutations(range(5)))
    inputs, targets = generate(WordProblem(group="S5", length=30), 5)
    for row, wanted in zip(inputs, targets, strict=True):
        matrix = np.eye(5, dtype=int)
        for x, target in zip(row, wanted, strict=True):
            matrix = matrix @ np.eye(5, dtype=int)[:, list(elements[x])]  # column i has its one in row x(i)
            assert tuple(matrix.argmax(axis=0)) == elements[target]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Parity(length=0), "length=0"),
        (lambda: Parity(vocab_size=1), "use 0 or vocab_size >= 2"),
        (lambda: CycleNavigation(cycle=1), "cycle=1"),
        (lambda: CycleNavigation(vocab_size=4), "vocab_size >= 5"),
        (lambda: ModularArithmetic(length=8), "length=8 must be odd; use 9"),
        (lambda: ModularArithmetic(length=9, modulus=1), "modulus=1"),
        (lambda: ModularArithmetic(length=9, vocab_size=9, brackets=True), "vocab_size >= 10"),
        (lambda: WordProblem(vocab_size=119), "vocab_size >= 120"),
    ],
)
def test_sizes_that_do_not_fit(make: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()  # type: ignore[operator]


def test_from_a_run_file() -> None:
    task = build_task("word_problem", {"group": "A4xZ5", "length": 12})
    assert (task.vocab_size, task.length, type(task)) == (60, 12, WordProblem)
    with pytest.raises(OptionError, match="targets"):
        build_task("parity", {"targets": "first"})
    with pytest.raises(OptionError, match="group"):
        build_task("word_problem", {"group": "M11"})
    for name, kind in {"cycle_navigation": CycleNavigation, "modular_arithmetic": ModularArithmetic}.items():
        assert catalog.get(name, "task").load() is kind
    assert ModularArithmetic(**ModularArithmetic.at_length(64)).length == 63
    assert ModularArithmetic(**ModularArithmetic.at_length(65)).length == 65


def test_per_position_accuracy() -> None:
    targets = torch.tensor([[1, -100, 3], [1, -100, -100]])
    predictions = torch.tensor([[1, 5, 0], [0, 5, 0]])
    found = per_position_accuracy(predictions, targets)
    assert torch.equal(found.nan_to_num(-1), torch.tensor([0.5, -1, 0], dtype=torch.float64))
    assert torch.equal(per_position_accuracy(torch.nn.functional.one_hot(predictions, 6), targets)[::2], found[::2])


def test_a_solver_of_short_rows_only_fails_beyond_them() -> None:
    """What extrapolation looks like: forgets the state after 10 tokens."""
    _, targets = generate(Parity(length=30), 3000)
    forgetful = np.where(np.arange(30) < 10, targets, 0)
    found = per_position_accuracy(torch.from_numpy(forgetful), torch.from_numpy(targets))
    assert (found[:10] == 1).all()
    assert found[10:].numpy() == pytest.approx(0.5, abs=0.05)


def test_rows_are_reproducible_and_fast() -> None:
    started = time.perf_counter()
    for task in (
        *TASKS[:2],
        ModularArithmetic(length=511),
        ModularArithmetic(length=512, brackets=True),
        WordProblem(),
    ):
        one, other = (TaskDataset(task, 300, 3)[299]["input_ids"].tolist() for _ in range(2))
        assert one == other
    assert time.perf_counter() - started < 5


def test_rows_stay_the_same_for_ever() -> None:
    """Published results name a seed; a change of these streams would make them unrepeatable."""
    row = TaskDataset(WordProblem(group="S3", length=8), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [0, 2, 5, 0, 0, 0, 4, 5]
    assert row["targets"].tolist() == [0, 2, 4, 4, 4, 4, 3, 1]
    row = TaskDataset(ModularArithmetic(length=9, brackets=True), 300, 7, "test")[299]
    assert text(row["input_ids"].numpy()) == "(0+(1-4))"
    assert row["targets"].tolist() == [-100] * 7 + [2, 2]
