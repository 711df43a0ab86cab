"""ListOps: worked examples, an evaluator of strings, the generator's distribution, padding, lengths."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch
from scipy import stats

from plait.data.tasks import build_task
from plait.data.tasks.base import TaskDataset, accuracy
from plait.data.tasks.list_ops import TOKENS, ListOps, _grow, _Level, _select, _sizes, _values, _write
from plait.errors import DataError

SMALL = ListOps.parse("list_ops", {"preset": "small"})


def words(row: np.ndarray) -> list[str]:
    return [TOKENS[i] for i in row if i]


def value(tokens: list[str]) -> int:
    """Reads and evaluates one expression from the front."""
    word = tokens.pop(0)
    if word.isdigit():
        return int(word)
    arguments = []
    while tokens[0] != "]":
        arguments.append(value(tokens))
    tokens.pop(0)
    match word:
        case "[MIN":
            return min(arguments)
        case "[MAX":
            return max(arguments)
        case "[MED":
            return int(statistics.median(arguments))
        case "[SM":
            return sum(arguments) % 10
    raise AssertionError(word)


def forest(*levels: tuple[list[int], list[int], list[int]]) -> list[_Level]:
    return [_Level(*(np.array(x) for x in level)) for level in levels]


@pytest.mark.parametrize(
    ("levels", "string", "answer"),
    [
        ([([0], [3], [1]), ([0] * 3, [0] * 3, [2, 9, 0])], "[MAX 2 9 0 ]", 9),
        (
            [([0], [4], [1]), ([0] * 4, [0, 0, 2, 0], [2, 9, 0, 0]), ([0, 0], [0, 0], [4, 7])],
            "[MAX 2 9 [MIN 4 7 ] 0 ]",
            9,
        ),
        (  # the example of the LRA paper: min(2, 3) = 2, median(1, 5, 8, 9, 2) = 5, max(4, 3, 2, 1, 0, 5) = 5
            [
                ([0], [6], [1]),
                ([0] * 6, [0, 0, 2, 0, 0, 5], [4, 3, 0, 1, 0, 2]),
                ([0] * 7, [0] * 7, [2, 3, 1, 5, 8, 9, 2]),
            ],
            "[MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]",
            5,
        ),
        ([([0], [4], [2]), ([0] * 4, [0] * 4, [9, 2, 5, 4])], "[MED 9 2 5 4 ]", 4),  # 4.5, rounded down
        ([([0], [3], [3]), ([0] * 3, [0] * 3, [9, 2, 5])], "[SM 9 2 5 ]", 6),
    ],
)
def test_worked_examples(levels: list, string: str, answer: int) -> None:
    row = np.zeros((1, 20), np.int32)
    tree = forest(*levels)
    _write(tree, row)
    assert " ".join(words(row[0])) == string
    assert (row[0, : 20 - len(string.split())] == 0).all()
    assert _values(tree).tolist() == [answer] == [value(string.split())]


def test_ids_of_the_example() -> None:
    row = np.zeros((1, 10), np.int32)
    _write(forest(([0], [4], [1]), ([0] * 4, [0, 0, 2, 0], [2, 9, 0, 0]), ([0, 0], [0, 0], [4, 7])), row)
    assert row.tolist() == [[0, 2, 8, 15, 1, 10, 13, 5, 6, 5]]


def test_several_trees_side_by_side() -> None:
    trees = forest(
        ([0, 1, 2], [2, 3, 2], [3, 0, 1]),
        ([0, 0, 1, 1, 1, 2, 2], [0, 2, 0, 0, 0, 2, 0], [7, 3, 4, 2, 8, 0, 1]),
        ([0, 0, 2, 2], [0] * 4, [5, 6, 3, 9]),
    )
    assert _sizes(trees)[0].tolist() == [7, 5, 7]
    rows = np.zeros((3, 8), np.int32)
    _write(trees, rows)
    strings = ["[SM 7 [SM 5 6 ] ]", "[MIN 4 2 8 ]", "[MAX [MIN 3 9 ] 1 ]"]
    assert [" ".join(words(row)) for row in rows] == strings
    assert _values(trees).tolist() == [8, 2, 3]
    rows = np.zeros((2, 8), np.int32)
    _write(_select(trees, np.array([1, 2])), rows)
    assert [" ".join(words(row)) for row in rows] == strings[1:]


@pytest.mark.parametrize("task", [SMALL, ListOps(), ListOps(length=20, min_length=3)], ids=str)
def test_answers_are_the_values_of_the_strings(task: ListOps) -> None:
    inputs, targets = task.generate(np.random.default_rng(0), 60)
    assert inputs.shape == targets.shape == (60, task.length)
    assert inputs.dtype == targets.dtype == np.int32
    assert (targets[:, :-1] == -100).all()
    for row, wanted in zip(inputs, targets, strict=True):
        tokens = words(row)
        assert task.min_length < len(tokens) < task.length
        assert (row[-len(tokens) :] > 0).all()  # padding is in front
        assert value(tokens) == wanted[-1] - TOKENS.index("0")
        assert not tokens  # one expression, wholly read


@pytest.mark.parametrize("task", [SMALL, ListOps()], ids=["small", "lra"])
def test_depth_and_arguments(task: ListOps) -> None:
    inputs, _ = task.generate(np.random.default_rng(0), 100)
    deepest, most = 0, 0
    for row in inputs:
        counts = [0]
        for word in words(row):
            if word == "]":
                arguments = counts.pop()
                assert arguments >= 2
                most = max(most, arguments)
            else:
                counts[-1] += 1
                deepest = max(deepest, len(counts))
                if word[0] == "[":
                    counts.append(0)
    assert (deepest, most) == (task.depth, task.arguments)


def test_trees_are_drawn_as_in_the_arena() -> None:
    levels, whole = _grow(np.random.default_rng(0), 20_000, 5, 10, 10**9)
    assert len(levels) == 5
    assert whole.all()
    assert (levels[0].children > 0).all()
    assert (levels[-1].children == 0).all()
    for level in levels[:-1]:
        assert stats.chisquare(np.bincount(level.children, minlength=11)[2:]).pvalue > 1e-3
        assert stats.chisquare(np.bincount(level.kind[level.children > 0], minlength=4)).pvalue > 1e-3
    for level in levels[1:]:
        digits = np.bincount(level.kind[level.children == 0], minlength=10)
        assert len(digits) == 10
        assert stats.chisquare(digits).pvalue > 1e-3
    for level in levels[1:-1]:
        assert (level.children > 0).mean() == pytest.approx(0.25, abs=0.005)


def test_lengths_follow_the_law_of_trees() -> None:
    """Depth 3, 2 arguments: 4 tokens with both digits, 7 with one operation, 10 with two; 9 : 6 : 1."""
    task = ListOps(length=11, min_length=3, depth=3, arguments=2)  # the longest just fits
    inputs, _ = task.generate(np.random.default_rng(0), 16_000)
    lengths = np.bincount((inputs > 0).sum(axis=1), minlength=11)
    assert lengths[[4, 7, 10]].sum() == 16_000
    assert stats.chisquare(lengths[[4, 7, 10]], [9000, 6000, 1000]).pvalue > 1e-3
    window = ListOps(length=10, min_length=4, depth=3, arguments=2)  # both ends are left out
    inputs, _ = window.generate(np.random.default_rng(0), 100)
    assert ((inputs > 0).sum(axis=1) == 7).all()


def test_chance_and_classes() -> None:
    _, targets = ListOps(length=20, min_length=3).generate(np.random.default_rng(0), 10_000)
    found = np.bincount(targets[:, -1], minlength=16)
    assert len(found) == 16
    assert (found[:6] == 0).all()
    assert (found[6:] > 0).all()
    guess = np.random.default_rng(1).integers(6, 16, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(SMALL.chance, abs=0.01)


def test_presets() -> None:
    lra = ListOps.parse("list_ops", {"preset": "lra"})
    assert (lra.length, lra.min_length, lra.depth, lra.arguments) == (2000, 500, 10, 10)
    assert (SMALL.length, SMALL.min_length, SMALL.depth, SMALL.arguments) == (128, 32, 4, 4)
    assert lra.vocab_size == SMALL.vocab_size == 16
    assert type(build_task("list_ops", {"preset": "small"})) is ListOps
    assert SMALL.longest_tree == 64 + 2 * 21
    assert ListOps(**ListOps.at_length(64)).min_length == 16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 1}, "depth=1 must be at least 2"),
        ({"arguments": 1}, "arguments=1"),
        ({"min_length": 0}, "min_length=0"),
        ({"min_length": 500, "length": 501}, "use length >= 502"),
        ({"min_length": 1, "length": 4}, "use length >= 5"),
        ({"depth": 4, "arguments": 4, "min_length": 106, "length": 200}, "at most 106 tokens; use min_length < 106"),
        ({"vocab_size": 15}, "use 0 or vocab_size >= 16"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        ListOps(**options)


def test_a_length_that_hardly_a_tree_has() -> None:
    task = ListOps(depth=4, arguments=4, min_length=100, length=128)
    with pytest.raises(DataError, match="hardly a tree of depth=4 and arguments=4"):
        task.generate(np.random.default_rng(0), 4)


def test_rows_are_reproducible_and_fast() -> None:
    started = time.perf_counter()
    rows = [TaskDataset(task, 300, 7, "test")[299] for task in (SMALL, ListOps())]
    assert time.perf_counter() - started < 5  # about 0.3 s on an idle core
    again = [TaskDataset(task, 300, 7, "test")[299] for task in (SMALL, ListOps())]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(rows, again, strict=True))


def test_rows_stay_the_same_for_ever() -> None:
    """Published results name a seed; a change of this stream would make them unrepeatable."""
    row = TaskDataset(ListOps(length=12, min_length=3), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [0, 0, 0, 0, 4, 8, 10, 12, 14, 13, 14, 5]
    assert row["targets"].tolist() == [-100] * 11 + [11]
