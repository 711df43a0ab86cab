"""MAD: worked examples, solvers written from the rules, distributions, published settings."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from plait import catalog
from plait.data.tasks import build_task
from plait.data.tasks.base import BLOCK, TaskDataset, accuracy
from plait.data.tasks.mad import (
    Compression,
    FuzzyRecall,
    InContextRecall,
    MadTask,
    Memorization,
    NoisyRecall,
    SelectiveCopying,
    mad_score,
)
from plait.data.tasks.mad.base import first_equal
from plait.errors import DataError, OptionError

Rows = tuple[np.ndarray, np.ndarray]


def generate(task: MadTask, rows: int = 64, seed: int = 0) -> Rows:
    return task.generate(np.random.default_rng(seed), rows)


class Rigged(np.random.Generator):
    """A generator that returns given draws, whatever their shape."""

    def __init__(self, integers: list[object], uniforms: list[object] = ()) -> None:  # type: ignore[assignment]
        super().__init__(np.random.PCG64(0))
        self.draws, self.uniforms = iter(integers), iter(uniforms)

    def integers(self, low: object, high: object, size: object = None, **_: object) -> np.ndarray:  # type: ignore[override]
        return np.array(next(self.draws), np.int64).reshape(np.shape(high) if size is None else size)  # type: ignore[arg-type]

    def random(self, size: object) -> np.ndarray:  # type: ignore[override]
        return np.array(next(self.uniforms), float).reshape(size)  # type: ignore[arg-type]


def test_in_context_recall_by_hand() -> None:
    """Keys 1 0 1 2 0 and, last, the key whose first pair has the largest draw: 1; values 3 5 3."""
    rng = Rigged([[1, 0, 1, 2, 0, 0], [4], [3, 5, 3], [0] * 12], [[0.5] * 6, [0.9, 0.1, 1, 0.2, 1, 1]])
    inputs, targets = InContextRecall(vocab_size=6, length=12).generate(rng, 1)
    assert inputs.tolist() == [[1, 5, 0, 3, 1, 5, 2, 3, 0, 3, 1, 5]]
    assert targets.tolist() == [[-100] * 4 + [5, -100, -100, -100, 3, -100, 5, -100]]


def test_selective_copying_by_hand() -> None:
    """Tokens 2 0 3; of five blanks one falls before the first, two before each other."""
    inputs, targets = SelectiveCopying(vocab_size=6, length=12, copied=3).generate(
        Rigged([[2, 0, 3], [1, 0, 2, 1, 2]]), 1
    )
    assert inputs.tolist() == [[4, 2, 4, 4, 0, 4, 4, 3, 5, 4, 4, 4]]
    assert targets.tolist() == [[-100] * 9 + [2, 0, 3]]


def test_compression_as_published_asks_for_the_mark() -> None:
    task = Compression(vocab_size=4, length=6, score_mark=True)
    inputs, targets = task.generate(Rigged([[0, 2, 2, 1, 0, 0]]), 1)
    assert targets.tolist() == inputs.tolist() == [[0, 2, 2, 1, 0, 3]]
    assert task.chance == pytest.approx((5 / 3 + 1) / 6)


def test_compression_by_hand() -> None:
    inputs, targets = Compression(vocab_size=4, length=6).generate(Rigged([[0, 2, 2, 1, 0, 0]]), 1)
    assert inputs.tolist() == [[0, 2, 2, 1, 0, 3]]
    assert targets.tolist() == [[0, 2, 2, 1, 0, -100]]
    assert Compression.autoencoder
    assert not InContextRecall.autoencoder


def test_memorization_by_hand() -> None:
    task = Memorization(vocab_size=7, length=8)
    one, two, three = task.mapping
    assert sorted(task.mapping) == [3, 4, 5]
    inputs, targets = task.generate(Rigged([[2, 0, 0, 1]]), 1)
    assert inputs.tolist() == [[2, 6, 0, 6, 0, 6, 1, 6]]
    assert targets.tolist() == [[-100, three, -100, one, -100, one, -100, two]]


def test_first_equal() -> None:
    assert first_equal(np.array([[5, 3, 5, 3, 0], [3, 3, 0, 5, 5]])).tolist() == [[0, 1, 0, 1, 4], [0, 0, 2, 3, 3]]


RECALL = [
    InContextRecall(),
    InContextRecall(vocab_size=128, length=512),
    InContextRecall(vocab_size=3, length=4),
    NoisyRecall(),
    NoisyRecall(noise=0.8, vocab_size=48),
    NoisyRecall(noise=0.9, length=4, vocab_size=4, noise_vocab_size=2),
]


@pytest.mark.parametrize("task", RECALL, ids=str)
def test_recall_is_a_look_up(task: InContextRecall) -> None:
    inputs, targets = generate(task)
    content = task.vocab_size - task.noise_vocab_size
    for row, wanted in zip(inputs, targets, strict=True):
        memory: dict[int, int] = {}
        for t in range(0, task.length, 2):
            key, value = row[t : t + 2]
            assert wanted[t + 1] == -100
            assert wanted[t] == memory.get(key, -100)
            if key < content // 2:
                assert content // 2 <= value < content
                assert memory.setdefault(key, value) == value  # a key keeps its value
            else:
                assert content <= min(key, value)
                assert max(key, value) < task.vocab_size
        assert wanted[-2] == row[-1]
    assert inputs.dtype == targets.dtype == np.int32


def test_recall_draws_evenly() -> None:
    inputs, _ = generate(InContextRecall(), 4000)
    assert stats.chisquare(np.bincount(inputs[:, 0], minlength=8)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(inputs[:, 1] - 8, minlength=8)).pvalue > 1e-3
    assert (inputs[:, 0] == inputs[:, 2]).mean() == pytest.approx(1 / 8, abs=0.02)  # keys may follow themselves
    same = inputs[:, 0] != inputs[:, 2]
    assert (inputs[:, 1] == inputs[:, 3])[same].mean() == pytest.approx(1 / 8, abs=0.02)  # keys may share a value


def test_the_last_key_is_drawn_from_those_that_stood_before() -> None:
    inputs, _ = generate(InContextRecall(length=8), 20_000)  # three pairs, then the query
    two = [row for row in inputs.tolist() if row[0] == row[2] != row[4]]
    assert np.mean([row[6] == row[0] for row in two]) == pytest.approx(0.5, abs=0.04)  # by key, not by pair


def test_share_of_noise() -> None:
    inputs, _ = generate(NoisyRecall(noise=0.4), 2000)
    noisy = inputs[:, ::2] >= 16
    assert noisy[:, :-1].mean() == pytest.approx(0.4 * 62 / 63, abs=0.01)  # one of 63 pairs never is
    assert not noisy[:, -1].any()
    assert not noisy.all(axis=1).any()
    counts = np.bincount(inputs[inputs >= 16] - 16, minlength=16)
    assert len(counts) == 16
    assert stats.chisquare(counts).pvalue > 1e-3


FUZZY = [
    FuzzyRecall(),
    FuzzyRecall(vocab_size=10, length=60, key_size=2, value_size=2),
    FuzzyRecall(vocab_size=128, length=512),
    FuzzyRecall(vocab_size=7, length=40, key_size=1, value_size=3),
    FuzzyRecall(vocab_size=7, length=13),
]


@pytest.mark.parametrize("task", FUZZY, ids=str)
def test_fuzzy_recall_is_a_look_up(task: FuzzyRecall) -> None:
    inputs, targets = generate(task)
    keys_below, filler, size = (task.vocab_size - 1) // 2, task.vocab_size - 1, task.key_size
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        tokens = [*row, wanted[-1]]
        answers = dict.fromkeys(range(task.length + 1), -100)
        memory: dict[tuple[int, ...], list[int]] = {}
        t = start = len(tokens) - len(list(filter(lambda token: token != filler, tokens)))
        assert tokens[:start] == [filler] * start
        while t < len(tokens):
            key = tuple(tokens[t : t + size])
            assert len(set(key)) == size
            assert max(key) < keys_below
            end = t + size
            while end < len(tokens) and tokens[end] >= keys_below:
                end += 1
            value = tokens[t + size : end]
            assert len(set(value)) == len(value) <= task.value_size
            if key in memory:
                assert memory[key] == value
                answers |= {place: tokens[place] for place in range(t + size, end)}
            last, memory[key] = key in memory, value
            t = end
        assert last  # the query is answerable
        assert wanted == [answers[t + 1] for t in range(task.length)]
        assert wanted[-1] >= keys_below


def test_fuzzy_sizes_and_places_are_even() -> None:
    inputs, targets = generate(FuzzyRecall(vocab_size=64, length=64), 3000)
    sizes = Counter((targets != -100).sum(axis=1))  # rarely another key stands twice: 1 in 27,000
    assert stats.chisquare([sizes[1], sizes[2], sizes[3]]).pvalue > 1e-3
    size = (targets != -100).sum(axis=1)
    first = [
        next(t for t in range(64) if (row[t : t + 3] == row[-n - 2 : 65 - n]).all())
        for row, n in zip(inputs, size, strict=True)
    ]
    thirds = np.histogram(first, bins=3, range=(8, 54))[0]
    assert thirds.min() / thirds.max() > 0.75


def test_training_rows_of_recall_ask_for_every_next_token() -> None:
    for task in (InContextRecall(), NoisyRecall(), FuzzyRecall()):
        inputs, targets = task.generate_split(np.random.default_rng(0), 50, "train")
        assert (targets[:, :-1] == inputs[:, 1:]).all()
        held_out = task.generate_split(np.random.default_rng(0), 50, "test")
        assert all((a == b).all() for a, b in zip(held_out, generate(task, 50), strict=True))
        assert ((held_out[1] != -100).mean(axis=1) < 0.5).all()
        alike = type(task)(learn="answers").generate_split(np.random.default_rng(0), 50, "train")
        assert all((a == b).all() for a, b in zip(held_out, alike, strict=True))
    inputs, _ = FuzzyRecall().generate_split(np.random.default_rng(0), 2000, "train")
    runs = [
        len(run) for row in inputs[:, 40:80] for run in "".join("k" if i < 7 else "v" for i in row).split("v")[1:-1]
    ]
    counts = Counter(length for length in runs if length)
    assert [counts[n] / counts.total() for n in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.02)
    assert max(counts) == 3


def test_selective_copying() -> None:
    for task in (SelectiveCopying(), SelectiveCopying(vocab_size=3, length=4, copied=1)):
        inputs, targets = generate(task)
        n, mark, blank = task.copied, task.vocab_size - 1, task.vocab_size - 2
        assert (inputs[:, -n - 1] == mark).all()
        assert (inputs[:, -n:] == blank).all()
        assert (targets[:, :-n] == -100).all()
        for row, wanted in zip(inputs, targets, strict=True):
            assert row[row < blank].tolist() == wanted[-n:].tolist()
    inputs, targets = generate(SelectiveCopying(), 4000)
    assert (inputs[:, 256 - 16 - 2] != 14).all()  # no blank stands between the last token and the mark
    assert stats.chisquare(np.bincount(targets[:, -16:].ravel(), minlength=14)).pvalue > 1e-3
    gap = (inputs[:, :240] != 14).argmax(axis=1)  # of 223 blanks each falls before the first token 1 time in 16
    assert gap.mean() == pytest.approx(223 / 16, abs=0.25)
    assert gap.var() == pytest.approx(223 / 16 * 15 / 16, rel=0.1)


def test_compression() -> None:
    inputs, targets = generate(Compression(), 2000)
    assert (inputs[:, -1] == 15).all()
    assert (targets[:, -1] == -100).all()
    assert (inputs[:, :-1] == targets[:, :-1]).all()
    assert stats.chisquare(np.bincount(inputs[:, :-1].ravel(), minlength=15)).pvalue > 1e-3


def test_memorization_has_one_mapping() -> None:
    task = Memorization()
    seen: dict[int, int] = {}
    for split in ("train", "test"):
        inputs, targets = task.generate_split(np.random.default_rng(5), 500, split)
        for key, value in zip(inputs[:, ::2].ravel(), targets[:, 1::2].ravel(), strict=True):
            assert seen.setdefault(key, value) == value
        assert (inputs[:, 1::2] == 255).all()
        assert (targets[:, ::2] == -100).all()
    assert sorted(seen) == list(range(127))
    assert len(set(seen.values())) == 127
    assert min(seen.values()) >= 127
    assert max(seen.values()) <= 254
    assert (Memorization(mapping_seed=1).mapping != task.mapping).any()
    assert (task.mapping != np.sort(task.mapping)).any()
    assert (
        max(Memorization(mapping_seed=seed).mapping.max() for seed in range(5)) == 254
    )  # no value is left out for good


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        (InContextRecall(), range(8, 16)),
        (NoisyRecall(), range(8, 16)),
        (FuzzyRecall(), range(7, 15)),
        (SelectiveCopying(), range(14)),
        (Compression(), range(15)),
        (Memorization(), range(127, 255)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_chance(task: MadTask, answers: range) -> None:
    assert task.chance == 1 / len(answers)
    _, targets = generate(task, 3000)
    asked = targets[targets != -100]
    assert answers.start <= asked.min()
    assert asked.max() < answers.stop
    guess = np.random.default_rng(1).integers(answers.start, answers.stop, targets.shape)
    assert accuracy(torch.from_numpy(guess), torch.from_numpy(targets)) == pytest.approx(task.chance, abs=0.015)


def test_published_settings() -> None:
    """Numbers of the task files of athms/mad-lab."""
    examples = {"examples-6400", "examples-3200", "examples-1600", "examples-800"}
    small = {"baseline", "vocab_size-32", "vocab_size-64", "vocab_size-128"}
    long = {"length-256", "length-512", "length-1024"}
    assert set(InContextRecall.presets) == set(FuzzyRecall.presets) == small | long | examples
    noise = {"noise-0.4", "noise-0.6", "noise-0.8"}
    vocabularies = {"baseline", "vocab_size-48", "vocab_size-80", "vocab_size-144"}
    assert set(NoisyRecall.presets) == vocabularies | long | examples | noise
    copied = {"copied-32", "copied-64", "copied-96"}
    assert set(SelectiveCopying.presets) == small | long - {"length-256"} | examples | copied
    assert set(Compression.presets) == small | {"length-64", "length-128", "length-256"} | examples
    assert set(Memorization.presets) == {"baseline", *(f"vocab_size-{2**n}" for n in range(9, 14))}

    def sizes(kind: type[MadTask]) -> tuple[int, int, int | None]:
        task = kind.parse("task", {"preset": "baseline"})
        return task.vocab_size, task.length, task.examples

    assert sizes(InContextRecall) == sizes(FuzzyRecall) == (16, 128, 12_800)
    assert sizes(NoisyRecall) == (32, 128, 12_800)
    assert sizes(SelectiveCopying) == (16, 256, 12_800)
    assert sizes(Compression) == (16, 32, 12_800)
    assert sizes(Memorization) == (256, 32, 256)
    noisy = NoisyRecall.parse("task", {"preset": "noise-0.6"})
    assert (noisy.noise, noisy.noise_vocab_size, noisy.vocab_size) == (0.6, 16, 32)
    fuzzy = FuzzyRecall.parse("task", {"preset": "length-256"})
    assert (fuzzy.key_size, fuzzy.value_size, fuzzy.length) == (3, 3, 256)
    assert SelectiveCopying.parse("task", {"preset": "length-512"}).copied == 16


@pytest.mark.parametrize(
    "kind", [InContextRecall, NoisyRecall, FuzzyRecall, SelectiveCopying, Compression, Memorization]
)
def test_every_setting_makes_rows(kind: type[MadTask]) -> None:
    started = time.perf_counter()
    for preset in kind.presets:
        task = kind.parse("task", {"preset": preset})
        for split in ("train", "test"):
            inputs, targets = task.generate_split(np.random.default_rng(0), 8, split)
            assert inputs.shape == targets.shape == (8, task.length)
            assert inputs.min() >= 0
            assert max(inputs.max(), targets.max()) < task.vocab_size
            assert (targets != -100).any(axis=1).all()
    assert time.perf_counter() - started < 10


def test_a_limited_number_of_training_rows() -> None:
    rows = TaskDataset(Compression(examples=300), 1000, 0)
    first = [rows[i]["input_ids"].tolist() for i in range(300)]
    assert len({tuple(row) for row in first}) == 300
    assert [rows[i]["input_ids"].tolist() for i in (300, 599, 999)] == [first[0], first[299], first[99]]
    endless = TaskDataset(Compression(), 1000, 0)
    assert [endless[i]["input_ids"].tolist() for i in range(300)] == first
    assert endless[300]["input_ids"].tolist() != first[0]
    held_out = TaskDataset(Compression(examples=1), BLOCK + 2, 0, "test")
    assert held_out[0]["input_ids"].tolist() != held_out[1]["input_ids"].tolist()


@pytest.mark.parametrize("length", [33, 64, 2048])
def test_at_length(length: int) -> None:
    for kind in (InContextRecall, NoisyRecall, Memorization):
        assert kind(**kind.at_length(length)).length == length // 2 * 2
    for kind in (FuzzyRecall, Compression, SelectiveCopying):
        assert kind(**kind.at_length(length)).length == length
    assert SelectiveCopying.at_length(256)["copied"] == 16


def test_mad_score() -> None:
    assert mad_score({"a/baseline": 1.0, "a/length-256": 0.5, "b/baseline": 0.0}) == 0.5
    with pytest.raises(DataError, match="at least one"):
        mad_score({})
    with pytest.raises(DataError, match="'a' is 98"):
        mad_score({"a": 98.5})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InContextRecall(length=7), "InContextRecall: length=7 must be even; use 8"),
        (lambda: InContextRecall(length=2), "length >= 4"),
        (lambda: InContextRecall(vocab_size=1), "vocab_size >= 2"),
        (lambda: InContextRecall(noise=0.5), "noise_vocab_size=0 has no id"),
        (lambda: NoisyRecall(noise=1.0), "below 1"),
        (lambda: NoisyRecall(vocab_size=17), "NoisyRecall: vocab_size=17 is too small .* use vocab_size >= 18"),
        (lambda: FuzzyRecall(vocab_size=6), "vocab_size >= 7"),
        (lambda: FuzzyRecall(length=12), "length >= 13"),
        (lambda: FuzzyRecall(key_size=0), "key_size >= 1"),
        (lambda: FuzzyRecall(value_size=0), "value_size >= 1"),
        (lambda: SelectiveCopying(length=33), "length=33 is too small for copied=16; use length >= 34"),
        (lambda: SelectiveCopying(copied=0), "copied >= 1"),
        (lambda: SelectiveCopying(vocab_size=2), "vocab_size >= 3"),
        (lambda: Compression(length=1), "length >= 2"),
        (lambda: Compression(vocab_size=1), "vocab_size >= 2"),
        (lambda: Memorization(length=5), "use 6"),
        (lambda: Memorization(vocab_size=2), "vocab_size >= 3"),
        (lambda: Memorization(mapping_seed=-1), "mapping_seed >= 0"),
        (lambda: Memorization(examples=0), "examples=0"),
    ],
)
def test_sizes_that_do_not_fit(make: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()  # type: ignore[operator]


def test_from_a_run_file() -> None:
    kinds = {
        "mad_in_context_recall": InContextRecall,
        "mad_noisy_recall": NoisyRecall,
        "mad_fuzzy_recall": FuzzyRecall,
        "mad_selective_copying": SelectiveCopying,
        "mad_compression": Compression,
        "mad_memorization": Memorization,
    }
    for name, kind in kinds.items():
        assert type(build_task(name, {"preset": "baseline"})) is kind
        assert catalog.get(name, "task").paper == "2403.17844"
    with pytest.raises(OptionError, match="preset"):
        build_task("mad_compression", {"preset": "base"})


def test_rows_stay_the_same_for_ever() -> None:
    """Published results name a seed; a change of these streams would make them unrepeatable."""
    row = TaskDataset(FuzzyRecall(vocab_size=10, length=16, key_size=2, value_size=2), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [9, 9, 0, 1, 5, 1, 2, 6, 5, 3, 1, 6, 8, 1, 2, 6]
    row = TaskDataset(NoisyRecall(length=12, vocab_size=9, noise_vocab_size=3), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [1, 4, 0, 3, 8, 6, 2, 3, 1, 4, 1, 4]
    row = TaskDataset(SelectiveCopying(length=12, copied=3), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [14, 14, 2, 14, 14, 1, 14, 10, 15, 14, 14, 14]
