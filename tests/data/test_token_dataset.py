"""Windows of packed tokens: an order that only the seed decides, borders between documents, batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from plait.data.corpora import open_corpus
from plait.data.packing import PackedTokens, TokenDataset, collate, pack
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, OptionError


@pytest.fixture
def packed(tmp_path: Path) -> PackedTokens:
    """About 700 tokens in short documents."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(30):
        (texts / f"{i}.txt").write_text(chr(65 + i) * (5 + i))
    return pack(open_corpus(f"text:{texts}"), byte_tokenizer(), tmp_path / "packed", "train")


def begin(dataset: TokenDataset, i: int) -> int:
    """Where row ``i`` starts, found by its content: every token of the stand-in is its own index."""
    return int(dataset[i]["input_ids"][0])


@pytest.fixture
def numbered(packed: PackedTokens) -> PackedTokens:
    """The same tokens replaced by their indices."""
    packed.tokens = torch.arange(len(packed)).numpy()
    return packed


@pytest.mark.parametrize("length", [1, 7, 16, 33])
def test_an_epoch_visits_disjoint_windows_once(numbered: PackedTokens, length: int) -> None:
    dataset = TokenDataset(numbered, length, samples=10_000, seed=3)
    epochs = 5
    offsets, orders = set(), set()
    for epoch in range(epochs):
        starts = [begin(dataset, i) for i in range(epoch * dataset.windows, (epoch + 1) * dataset.windows)]
        offset = min(starts)
        offsets.add(offset)
        orders.add(tuple(start - offset for start in starts))
        assert sorted(starts) == [offset + w * length for w in range(dataset.windows)]
        assert starts != sorted(starts)
        assert max(starts) + length < len(numbered)  # the last target exists
        assert dataset.windows * length > len(numbered) - 2 * length - 1  # little is left out
    assert len(offsets) > 1 or length == 1
    assert len(orders) == epochs


def test_targets_are_the_next_tokens(numbered: PackedTokens) -> None:
    row = TokenDataset(numbered, 16, 4, 0)[2]
    assert row["input_ids"].dtype == row["targets"].dtype == torch.int64
    assert row["targets"].tolist() == [token + 1 for token in row["input_ids"].tolist()]


def test_rows_depend_on_seed_and_index_alone(packed: PackedTokens) -> None:
    one = TokenDataset(packed, 16, 500, seed=1)
    other = TokenDataset(PackedTokens.open(packed.folder), 16, 300, seed=1)
    for i in (299, 0, 7, 120):  # any order, another number of samples, another process' view
        assert one[i]["input_ids"].tolist() == other[i]["input_ids"].tolist()
    rows = [TokenDataset(packed, 16, 100, seed)[i]["input_ids"].tolist() for seed in (1, 2) for i in range(20)]
    assert rows[:20] != rows[20:]


def test_resumed_loader_sees_the_same_batches(packed: PackedTokens) -> None:
    dataset = TokenDataset(packed, 16, 64, seed=5)
    batches = list(DataLoader(dataset, batch_size=4, collate_fn=collate))
    rest = torch.utils.data.Subset(dataset, range(36, 64))
    for full, resumed in zip(batches[9:], DataLoader(rest, batch_size=4, collate_fn=collate), strict=True):
        assert torch.equal(full["input_ids"], resumed["input_ids"])


def test_worker_processes_see_the_same_batches(packed: PackedTokens) -> None:
    dataset = TokenDataset(packed, 16, 16, seed=5, documents="separate")
    alone = list(DataLoader(dataset, batch_size=4, collate_fn=collate))
    loader = DataLoader(dataset, batch_size=4, collate_fn=collate, num_workers=1, multiprocessing_context="spawn")
    for one, other in zip(alone, loader, strict=True):
        assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}


@pytest.mark.parametrize("length", [1, 5, 16, 64])
def test_separate_documents(packed: PackedTokens, length: int) -> None:
    joined = TokenDataset(packed, length, 200, seed=2)
    separate = TokenDataset(packed, length, 200, seed=2, documents="separate")
    eos = 256
    for i in range(200):
        row, plain = separate[i], joined[i]
        ids = row["input_ids"]
        assert torch.equal(ids, plain["input_ids"])
        after_eos = (ids[:-1] == eos).nonzero().flatten() + 1
        assert row["document_starts"].tolist() == sorted({0, *after_eos.tolist()})
        ends = ids == eos
        assert (row["targets"][ends] == -100).all()
        assert torch.equal(row["targets"][~ends], plain["targets"][~ends])


def test_batches_of_separate_documents_are_laid_behind_each_other() -> None:
    rows = [
        {
            "input_ids": torch.tensor([1, 2, 3]),
            "targets": torch.tensor([2, 3, 4]),
            "document_starts": torch.tensor([0]),
        },
        {
            "input_ids": torch.tensor([5, 6]),
            "targets": torch.tensor([-100, 7]),
            "document_starts": torch.tensor([0, 1]),
        },
    ]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 5, 6]]
    assert batch["targets"].tolist() == [[2, 3, 4, -100, 7]]
    assert batch["cu_seqlens"].tolist() == [0, 3, 4, 5]
    assert batch["cu_seqlens"].dtype == torch.int64


def test_rows_of_several_lengths_are_filled_on_the_right() -> None:
    rows = [
        {"input_ids": torch.tensor([1, 2, 3]), "targets": torch.tensor([-100, -100, 4])},
        {"input_ids": torch.tensor([5]), "targets": torch.tensor([6])},
    ]
    batch = collate(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [5, 0, 0]]
    assert batch["targets"].tolist() == [[-100, -100, 4], [6, -100, -100]]
    assert set(batch) == {"input_ids", "targets"}


def test_smallest_corpus_is_one_window(numbered: PackedTokens) -> None:
    dataset = TokenDataset(numbered, len(numbered) - 1, 3, 0)
    assert [begin(dataset, i) for i in range(3)] == [0, 0, 0]
    with pytest.raises(DataError, match=rf"train split of .* has {len(numbered)} tokens, fewer than one window"):
        TokenDataset(numbered, len(numbered), 3, 0)


def test_wrong_arguments(packed: PackedTokens) -> None:
    with pytest.raises(OptionError, match="length=0"):
        TokenDataset(packed, 0, 1, 0)
    with pytest.raises(OptionError, match="'join' or 'separate'"):
        TokenDataset(packed, 4, 1, 0, "apart")  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        TokenDataset(packed, 4, 1, 0)[1]
