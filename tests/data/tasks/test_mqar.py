"""MQAR: the worked example, the oracles of the Based paper's card, the distribution of gaps, reproducible rows."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from plait import catalog
from plait.data.packing import collate
from plait.data.tasks.base import BLOCK, TaskDataset, accuracy, per_example_accuracy
from plait.data.tasks.mqar import MQAR, Setting
from plait.errors import DataError, OptionError


def generate(task: MQAR, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return task.generate(np.random.default_rng(seed), rows)


class Rigged(np.random.Generator):
    """A generator whose draws make the worked example: keys 2 4, values 8 7, gaps 4 and 1."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        # Fisher-Yates picks, as places in the pool: keys 1..5, then values 6..11
        self.picks = iter([1, 3, 2, 1])

    def integers(self, low: int, high: int, size: int) -> np.ndarray:  # type: ignore[override]
        pick = next(self.picks)
        assert low <= pick < high
        return np.full(size, pick)

    def standard_exponential(self, size: tuple[int, int]) -> np.ndarray:  # type: ignore[override]
        clocks = np.full(size, 1e6)
        clocks[:, 4], clocks[:, 1] = 1e-6, 1e-3  # place 4 rings first, then place 1
        return clocks


def test_worked_example() -> None:
    task = MQAR(vocab_size=12, length=16, pairs=2, random_fillers=False)
    inputs, targets = task.generate(Rigged(), 1)
    assert inputs[0].tolist() == [2, 8, 4, 7, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 0, 0]
    assert targets[0].tolist() == [-100] * 6 + [7] + [-100] * 5 + [8] + [-100] * 3


TASKS = [
    MQAR(),
    MQAR(vocab_size=64, pairs=8),
    MQAR(vocab_size=64, pairs=16),
    MQAR(vocab_size=34, pairs=16, power=1.0, random_fillers=False),
    MQAR(vocab_size=12, length=16, pairs=2, random_fillers=False),
    MQAR(vocab_size=64, length=128, pairs=8, passes=3),
    MQAR(vocab_size=64, length=128, pairs=8, forgetting=5),
    MQAR(vocab_size=256, length=512, pairs=64, passes=2, forgetting=64),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_perfect_look_up_scores_one(task: MQAR) -> None:
    inputs, targets = generate(task)
    answers = np.full_like(targets, 0)
    context = 2 * (task.pairs * task.passes + task.forgetting)
    for row in range(len(inputs)):
        memory = {}
        for position in range(0, context, 2):
            memory[inputs[row, position]] = inputs[row, position + 1]  # the last value counts
        for position in range(context, task.length):
            answers[row, position] = memory.get(inputs[row, position], 0)
    assert accuracy(torch.from_numpy(answers), torch.from_numpy(targets)) == 1.0


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_layout(task: MQAR) -> None:
    inputs, targets = generate(task)
    K, V = task.pairs, task.vocab_size
    context = 2 * (K * task.passes + task.forgetting)
    keys, values = inputs[:, : 2 * K : 2], inputs[:, 1 : 2 * K : 2]
    assert ((keys >= 1) & (keys < V // 2)).all()
    assert ((values >= V // 2) & (values < V)).all()
    assert all(len(set(row)) == K for row in [*keys.tolist(), *values.tolist()])
    asked = targets != -100
    assert (asked.sum(1) == K).all()
    assert not asked[:, :context].any()
    assert (asked.nonzero()[1] % 2 == 0).all()
    for row in range(len(inputs)):
        assert sorted(inputs[row][asked[row]]) == sorted(keys[row])  # each key once more
    if not task.random_fillers:
        assert (inputs[:, context:][~asked[:, context:]] == 0).all()
    for passed in range(task.passes):
        assert (inputs[:, 2 * K * passed : 2 * K * (passed + 1)] == inputs[:, : 2 * K]).all()
    if task.forgetting:
        again = inputs[:, 2 * K * task.passes : context]
        assert all(set(again[row, ::2]) <= set(keys[row]) for row in range(len(inputs)))
        assert all(not set(again[row, 1::2]) & set(values[row]) for row in range(len(inputs)))
        assert all(len(set(again[row, ::2])) == task.forgetting for row in range(len(inputs)))


def test_every_key_and_value_occurs_equally_often() -> None:
    inputs, _ = generate(MQAR(vocab_size=32, length=16, pairs=4), rows=20_000)
    for place in range(4):
        keys = np.bincount(inputs[:, 2 * place], minlength=32)
        values = np.bincount(inputs[:, 2 * place + 1], minlength=32)
        assert keys[1:16].sum() == values[16:].sum() == 20_000
        assert stats.chisquare(keys[1:16]).pvalue > 1e-3
        assert stats.chisquare(values[16:]).pvalue > 1e-3


def test_fillers_are_uniform_over_the_whole_vocabulary() -> None:
    inputs, targets = generate(MQAR(vocab_size=32, length=16, pairs=2), rows=20_000)
    fillers = inputs[:, 4:][targets[:, 4:] == -100]
    assert stats.chisquare(np.bincount(fillers, minlength=32)).pvalue > 1e-3


def first_gaps(power: float, pairs: int, rows: int = 20_000) -> np.ndarray:
    """Gap of the first key in each row."""
    task = MQAR(vocab_size=64, length=40, pairs=pairs, power=power, random_fillers=False)
    inputs, _ = generate(task, rows)
    where = (inputs[:, 2 * pairs :] == inputs[:, :1]).argmax(1)
    return where // 2


def test_power_one_spreads_the_queries_evenly() -> None:
    gaps = np.bincount(first_gaps(1.0, pairs=4), minlength=16)
    assert len(gaps) == 16
    assert stats.chisquare(gaps).pvalue > 1e-3


def test_small_power_follows_the_power_law() -> None:
    i = np.arange(1, 17)
    p = 0.01 * i ** (0.01 - 1)
    gaps = np.bincount(first_gaps(0.01, pairs=4), minlength=16)
    assert stats.chisquare(gaps, p / p.sum() * gaps.sum()).pvalue > 1e-3
    assert stats.chisquare(gaps).pvalue < 1e-6


def test_draws_without_replacement_agree_with_numpy() -> None:
    task = MQAR(vocab_size=64, length=16, pairs=4, power=0.3, random_fillers=False)  # 4 places, 4 keys: all used
    inputs, _ = generate(task, 20_000)
    order = np.stack([(inputs[:, 8:] == inputs[:, 2 * j, None]).argmax(1) // 2 for j in range(4)], axis=1)
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    rng = np.random.default_rng(1)
    p = np.arange(1, 5) ** (0.3 - 1)
    reference = np.stack([rng.choice(4, 4, replace=False, p=p / p.sum()) for _ in range(20_000)])
    code = 4 ** np.arange(4)
    found, expected = (np.bincount(x @ code, minlength=256) for x in (order, reference))
    seen = expected > 0
    assert (found[~seen] == 0).all()
    assert stats.chi2_contingency([found[seen], expected[seen]]).pvalue > 1e-3


COMPOSITIONAL = [
    MQAR(vocab_size=18, length=28, pairs=4, key_tokens=2, random_fillers=False),
    MQAR(vocab_size=27, length=54, pairs=9, key_tokens=2),
    MQAR(vocab_size=256, length=256, pairs=36, key_tokens=2, power=1.0),
    MQAR(vocab_size=64, length=128, pairs=4, key_tokens=2, passes=2, forgetting=3),
]


@pytest.mark.parametrize("task", COMPOSITIONAL, ids=str)
def test_keys_of_two_tokens(task: MQAR) -> None:
    inputs, targets = generate(task)
    third, side = task.vocab_size // 3, round(task.pairs**0.5)
    context = 3 * (task.pairs * task.passes + task.forgetting)
    asked = targets != -100
    assert (asked.sum(1) == task.pairs).all()
    assert ((asked.nonzero()[1] - context) % 3 == 1).all()  # on the second token of a key
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        memory = {(row[place], row[place + 1]): row[place + 2] for place in range(0, context, 3)}
        first, second = ({key[place] for key in memory} for place in (0, 1))
        assert len(memory) == task.pairs
        assert len(first) == len(second) == side  # so the keys are the whole grid
        assert all(1 <= token < third for token in first)
        assert all(third <= token < 2 * third for token in second)
        assert all(2 * third <= value < task.vocab_size for value in memory.values())
        assert len(set(memory.values())) == task.pairs
        places = [place for place, answer in enumerate(target) if answer != -100]
        assert [memory[row[place - 1], row[place]] for place in places] == [target[place] for place in places]
        assert {(row[place - 1], row[place]) for place in places} == set(memory)
        if not task.random_fillers:
            fillers = set(range(context, task.length)) - {place - back for place in places for back in (0, 1)}
            assert all(row[place] == 0 for place in fillers)


def test_grid_keys_are_shown_in_any_order() -> None:
    inputs, _ = generate(MQAR(vocab_size=18, length=24, pairs=4, key_tokens=2), rows=4000)
    first = inputs[:, [0, 3, 6, 9]]
    second = inputs[:, [1, 4, 7, 10]]
    share = ((first[:, :1] == first) & (second[:, :1] != second)).mean(0)  # the other key of the same first token
    assert share.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


PAIRS = {  # (length, pairs), rows of the official training sets
    "zoology-fig2": [(64, 4)],
    "zoology-fig2-128": [(128, 8)],
    "zoology-fig2-256": [(256, 16)],
    "zoology-fig2-512": [(512, 64)],
    "based": [(64, 4), (128, 8), (256, 16), (256, 32), (256, 64)],
    "based-test": [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)],
    "compositional": [(64, 4), (128, 9), (256, 16), (256, 25), (256, 36)],
    "compositional-test": [(64, 4), (64, 9), (128, 16), (256, 36), (512, 64), (1024, 144), (2048, 256)],
}


@pytest.mark.parametrize("name", MQAR.presets)
def test_presets_are_the_published_settings(name: str) -> None:
    task = MQAR.parse("mqar", {"preset": name})
    assert (task.vocab_size, task.power, task.passes, task.forgetting) == (8192, 0.01, 1, 0)
    assert task.random_fillers == (not name.startswith("zoology"))
    assert task.key_tokens == (2 if name.startswith("compositional") else 1)
    assert [(setting.length, setting.pairs) for setting in task.settings] == PAIRS[name]
    total = sum(setting.weight for setting in task.settings)
    shares = [setting.weight / total for setting in task.settings]
    trained = len(shares) == 5  # 100,000 rows of the first and 20,000 of each other setting; tests have 1,000 of each
    assert shares == pytest.approx([5 / 9] + [1 / 9] * 4 if trained else [1 / len(shares)] * len(shares))


def test_chance_of_two_token_keys() -> None:
    assert MQAR(vocab_size=20, length=24, pairs=4, key_tokens=2).chance == 1 / 8  # values 12..19


def test_chance() -> None:
    task = MQAR(vocab_size=64, pairs=8)
    inputs, targets = generate(task, 4000)
    rng = np.random.default_rng(1)
    of_row = np.take_along_axis(inputs[:, 1:16:2], rng.integers(0, 8, targets.shape), axis=1)
    assert accuracy(torch.from_numpy(of_row), torch.from_numpy(targets)) == pytest.approx(1 / 8, abs=0.01)
    any_value = rng.integers(32, 64, targets.shape)
    assert accuracy(torch.from_numpy(any_value), torch.from_numpy(targets)) == pytest.approx(2 / 64, abs=0.006)


def test_accuracy_is_a_mean_over_rows_of_means_over_queries() -> None:
    targets = torch.tensor([[-100, 5, 6, 7, 8], [9, -100, -100, -100, -100]])
    predictions = torch.tensor([[1, 5, 0, 0, 0], [9, 1, 1, 1, 1]])  # 1 of 4, 1 of 1
    assert per_example_accuracy(predictions, targets).tolist() == [0.25, 1.0]
    assert accuracy(predictions, targets) == 0.625  # over all queries it would be 0.4
    logits = torch.nn.functional.one_hot(predictions, 10).float()
    assert accuracy(logits, targets) == 0.625
    with pytest.raises(DataError, match="no query"):
        accuracy(predictions, torch.full_like(targets, -100))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": 64, "pairs": 17}, "length=64 is too short for pairs=17: 4 x pairs = 68 must fit; use length >= 68"),
        ({"length": 64, "pairs": 8, "passes": 4}, "context and queries = 80"),
        ({"length": 33}, "must be even; use 34"),
        ({"vocab_size": 8, "pairs": 4}, "use vocab_size >= 10"),
        ({"vocab_size": 10, "pairs": 4, "forgetting": 2}, "use vocab_size >= 12"),
        ({"pairs": 0}, "pairs=0"),
        ({"pairs": 4, "forgetting": 5}, "forgetting=5"),
        ({"power": 0.0}, "power=0.0"),
        ({"passes": 0}, "passes=0"),
        ({"mixture": [(64, 4), (32, 9)]}, "length=32 is too short for pairs=9"),
        ({"mixture": [(64, 4, 0.0)]}, "weight=0.0"),
        ({"key_tokens": 3}, "key_tokens=3 must be 1 or 2"),
        ({"key_tokens": 2, "pairs": 8}, "pairs=8 must be a square for key_tokens=2; use 4 or 9"),
        ({"key_tokens": 2, "pairs": 16}, "6 x pairs = 96 must fit; use length >= 96"),
        ({"key_tokens": 2, "pairs": 9, "forgetting": 4}, "context and queries = 66 must fit"),
        ({"key_tokens": 2, "vocab_size": 11}, "use vocab_size >= 12"),
    ],
)
def test_sizes_that_do_not_fit(options: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        MQAR(**options)  # type: ignore[arg-type]


def test_smallest_sizes_that_fit() -> None:
    inputs, targets = generate(MQAR(vocab_size=10, length=16, pairs=4))
    assert ((targets != -100)[:, 8::2]).all()
    assert inputs.max() < 10


def rows(dataset: TaskDataset, indices: list[int]) -> list[list[int]]:
    return [dataset[i]["input_ids"].tolist() + dataset[i]["targets"].tolist() for i in indices]


def test_rows_depend_on_seed_split_and_index_alone() -> None:
    task = MQAR(vocab_size=64)
    one = TaskDataset(task, 1000, 3)
    other = TaskDataset(task, 700, 3)
    indices = [699, 0, 255, 256, 13]
    assert rows(one, indices) == rows(other, indices)
    assert rows(one, [0]) != rows(TaskDataset(task, 1000, 4), [0])
    assert one[0]["input_ids"].dtype == one[0]["targets"].dtype == torch.int64


def test_splits_share_no_row() -> None:
    task = MQAR(vocab_size=64)
    sets = [
        {tuple(row) for row in rows(TaskDataset(task, 1000, seed, split), list(range(1000)))}
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    assert len(set().union(*sets)) == 6000
    with pytest.raises(OptionError, match="Did you mean 'validation'"):
        TaskDataset(task, 10, 0, "validations")


def test_rows_stay_the_same_for_ever() -> None:
    """Published results name a seed; a change of this stream would make them unrepeatable."""
    row = TaskDataset(MQAR(vocab_size=16, length=8, pairs=2), 300, 7, "test")[299]
    assert row["input_ids"].tolist() == [2, 11, 3, 12, 3, 5, 2, 10]
    assert row["targets"].tolist() == [-100, -100, -100, -100, 12, -100, 11, -100]


def test_few_blocks_are_kept_and_any_order_gives_the_same() -> None:
    task = MQAR(vocab_size=256, length=512, pairs=64)
    dataset = TaskDataset(task, 100 * BLOCK, 0)
    order = [i * BLOCK for i in (5, 90, 3, 5, 77)]
    assert rows(dataset, order)[0] == rows(TaskDataset(task, 100 * BLOCK, 0), [order[0]])[0]
    for block in range(60):
        dataset[block * BLOCK]
    assert sum(a.nbytes + b.nbytes for a, b in dataset._blocks.values()) <= 32_000_000
    batch = dataset.__getitems__([700, 2, 700, 301])
    assert [row["input_ids"].tolist() for row in batch] == [
        dataset[i]["input_ids"].tolist() for i in (700, 2, 700, 301)
    ]


def test_mixture() -> None:
    task = MQAR(vocab_size=64, mixture=[Setting(64, 4, 3.0), Setting(32, 8)])
    assert task.longest == 64
    dataset = TaskDataset(task, 400 * BLOCK, 0)
    lengths = [len(dataset[block * BLOCK]["input_ids"]) for block in range(400)]
    assert set(lengths) == {64, 32}
    assert lengths.count(64) / 400 == pytest.approx(0.75, abs=0.08)
    for block in (0, 1, 2, 3):
        found = [dataset[block * BLOCK + i] for i in range(0, BLOCK, 50)]
        assert len({len(row["input_ids"]) for row in found}) == 1
        assert {(row["targets"] != -100).sum().item() for row in found} == {4 if lengths[block] == 64 else 8}
    loader = DataLoader(dataset, batch_size=64, collate_fn=collate, sampler=range(8 * BLOCK))
    widths = {batch["input_ids"].shape for batch in loader}
    assert widths == {(64, 64), (64, 32)}


def test_batches_are_made_fast() -> None:
    dataset = TaskDataset(MQAR(), 16 * BLOCK, 0)
    started = time.perf_counter()
    for start in range(0, len(dataset), 32):
        collate(dataset.__getitems__(range(start, start + 32)))
    assert (time.perf_counter() - started) / len(dataset) < 1e-3  # about 25 microseconds on an idle core


def test_catalogue_knows_the_task() -> None:
    assert catalog.get("mqar", "task").load() is MQAR
