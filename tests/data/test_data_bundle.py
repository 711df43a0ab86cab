"""The data of a run, from the section of its file."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from plait.data import TaskData, TextData, build
from plait.data.tokenizers import tokenizer_hash
from plait.errors import DataError, OptionError
from plait.runs.config import DataSection
from plait.sections import validated


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i} of the book\n" for i in range(3000)))
    return path


def rows(dataset: torch.utils.data.Dataset[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]  # type: ignore[arg-type]


def test_text(book: Path, tmp_path: Path) -> None:
    section = DataSection(corpus=f"text:{book}", length=32)
    data = build(section, tmp_path / "data", seed=1)
    assert isinstance(data, TextData)
    assert (data.vocab_size, data.length) == (258, 32)
    assert not list((tmp_path / "data").glob("train-*"))  # packed when first used
    train = data.train_dataset(50)
    assert len(train) == 50
    assert rows(train) == rows(build(section, tmp_path / "data", seed=1).train_dataset(50))
    assert rows(train) != rows(build(section, tmp_path / "data", seed=2).train_dataset(50))
    assert rows(train) != rows(data.train_dataset(50, seed_offset=1))
    assert 0.9 < data.bytes_per_token() < 1


def test_held_out_rows_are_the_same_for_every_seed_and_never_repeat(book: Path, tmp_path: Path) -> None:
    section = DataSection(corpus=f"text:{book}", length=32)
    found = [rows(build(section, tmp_path, seed).validation_dataset(10_000)) for seed in (1, 2)]
    assert found[0] == found[1]
    assert 50 < len(found[0]) < 10_000
    assert len(set(map(tuple, found[0]))) == len(found[0])
    test = rows(build(section, tmp_path, 1).test_dataset(10_000))
    assert not set(map(tuple, test)) & set(map(tuple, found[0]))


def test_bigrams_of_the_training_split(book: Path, tmp_path: Path) -> None:
    data = build(DataSection(corpus=f"text:{book}"), tmp_path, 0)
    assert isinstance(data, TextData)
    expected = Counter(pairwise(data.packed("train").tokens.tolist()))
    pair = torch.tensor(ord("l")), torch.tensor(ord("i"))
    assert data.bigram_counts()(*pair).item() == expected[ord("l"), ord("i")] > 2000


def test_tokenizer_of_a_model_is_used(book: Path, tmp_path: Path) -> None:
    section = DataSection(corpus=f"text:{book}", tokenizer="bpe:300")
    first = build(section, tmp_path / "one", 0)
    assert first.tokenizer is not None
    again = build(section.model_copy(update={"tokenizer": "bytes"}), tmp_path / "two", 0, tokenizer=first.tokenizer)
    assert again.vocab_size == 300
    assert again.tokenizer is first.tokenizer
    reused = build(section, tmp_path / "one", 0)
    assert reused.tokenizer is not None
    assert tokenizer_hash(reused.tokenizer) == tokenizer_hash(first.tokenizer)


def test_too_little_held_out_text_fails_before_training(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a few words\n" * 20)
    with pytest.raises(DataError, match=r"validation split .* fewer than one window of length 256"):
        build(DataSection(corpus=f"text:{tmp_path / 'short.txt'}"), tmp_path / "data", 0)


def test_separate_documents_make_packed_batches(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"document {i}\n" * 4)
    data = build(DataSection(corpus=f"text:{tmp_path}", length=32, documents="separate"), tmp_path / "data", 0)
    train = data.train_dataset(4)
    batch = data.collate([train[i] for i in range(4)])
    assert batch["input_ids"].shape == batch["targets"].shape == (1, 128)
    assert {0, 32, 64, 96, 128} <= set(batch["cu_seqlens"].tolist())
    assert len(batch["cu_seqlens"]) > 5


def test_task(tmp_path: Path) -> None:
    section = DataSection(task="mqar", options={"vocab_size": 64, "pairs": 8}, length=48)
    data = build(section, tmp_path, seed=1)
    assert isinstance(data, TaskData)
    assert (data.vocab_size, data.length, data.tokenizer) == (64, 48, None)
    assert build(DataSection(task="mqar", options={"length": 32}), tmp_path, 0).length == 32
    train, validation, test = (d(300) for d in (data.train_dataset, data.validation_dataset, data.test_dataset))
    sets = [set(map(tuple, rows(d))) for d in (train, validation, test, data.train_dataset(300, seed_offset=1))]
    assert all(len(found) == 300 for found in sets)
    assert len(set().union(*sets)) == 1200
    assert rows(validation) == rows(build(section, tmp_path, seed=2).validation_dataset(300))
    assert data.collate([train[0], train[1]])["targets"].shape == (2, 48)


@pytest.mark.parametrize(
    ("section", "error", "words"),
    [
        ({"task": "mqra"}, OptionError, "Did you mean 'mqar'"),
        ({"task": "mqar", "options": {"pair": 3}}, OptionError, "'mqar' has no option 'pair'. Did you mean 'pairs'"),
        ({"task": "mqar", "options": {"pairs": "3"}}, OptionError, "option pairs='3'"),
        ({"task": "mqar", "options": {"mixture": [[64, "x"]]}}, OptionError, r"option mixture\.0\.1='x'"),
        ({"task": "mqar", "length": 64, "options": {"pairs": 17}}, DataError, "length >= 68"),
        ({"corpus": "nothing"}, OptionError, "no corpus 'nothing'"),
        ({"corpus": "python-stdlib", "tokenizer": "letters"}, OptionError, "no tokenizer 'letters'"),
    ],
)
def test_errors(section: dict[str, object], error: type[Exception], words: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        build(validated(DataSection, section, "run.yaml"), tmp_path, 0)
