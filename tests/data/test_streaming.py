"""A streamed corpus gives the same rows in any process, from any place on, without a file of tokens."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.data.corpora import open_corpus
from plait.data.hub import HubCorpus
from plait.data.packing import IGNORED
from plait.data.streaming import StreamedTokens
from plait.data.tokenizers import byte_tokenizer
from plait.errors import DataError, OptionError
from plait.runs.config import RunConfig
from plait.sections import validated

LENGTH = 16
EOS = 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """900 texts of unequal length in three files."""
    (tmp_path / "set").mkdir()
    for part in range(3):
        lines = [json.dumps({"text": f"<{part * 300 + i}>" * (1 + i % 3)}) for i in range(300)]
        (tmp_path / "set" / f"train-{part}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "set"


def stream(folder: Path, samples: int = 2000, **options: Any) -> StreamedTokens:
    corpus = open_corpus(f"hf:{folder}")
    assert isinstance(corpus, HubCorpus)
    return StreamedTokens(corpus, byte_tokenizer(), LENGTH, samples, options.pop("seed", 0), **options)


def rows(data: StreamedTokens, *indices: int) -> list[list[int]]:
    return [data[i]["input_ids"].tolist() for i in indices]


def test_an_epoch_holds_every_training_text_once_and_no_other(folder: Path) -> None:
    data = stream(folder)
    expected = [text for _, text in data.corpus.documents("train")]
    size = sum(len(text) + 1 for text in expected)
    tokens = [token for row in rows(data, *range(size // LENGTH)) for token in row]
    texts = bytes(token if token < EOS else 10 for token in tokens).decode().split("\n")
    assert texts[:-1] != expected[: len(texts) - 1]  # shuffled
    left = set(expected) - set(texts[:-1])
    assert set(texts[:-1]) < set(expected)
    assert len(set(texts[:-1])) == len(texts) - 1
    assert sum(len(text) + 1 for text in left) <= LENGTH + len(texts[-1])  # the end of the epoch fills no row
    held = {text for split in ("validation", "test") for _, text in data.corpus.documents(split)}
    assert held
    assert not held & set(texts)


def test_targets_are_the_next_tokens_across_rows_and_epochs(folder: Path) -> None:
    data = stream(folder)
    found = [data[i] for i in range(1500)]  # more than one epoch
    for row, following in pairwise(found):
        assert row["targets"][:-1].equal(row["input_ids"][1:])
        assert row["targets"][-1] == following["input_ids"][0]


def test_any_order_of_asking_gives_the_same_rows(folder: Path) -> None:
    whole = rows(stream(folder), *range(600))
    dealt = stream(folder)
    assert rows(dealt, *range(1, 600, 3)) == whole[1::3]  # what one of three processes reads
    assert rows(dealt, 599, 10, 300) == [whole[599], whole[10], whole[300]]  # also backwards


@pytest.mark.parametrize("row", [0, 1, 260, 700, 1400])
def test_a_position_goes_on_without_reading_from_the_start(folder: Path, row: int) -> None:
    """Saved while the reader is ahead, as a loader that fetches early leaves it."""
    whole = stream(folder)
    expected = rows(whole, *range(row, row + 100))
    data = stream(folder)
    rows(data, *range(0, row + 50))
    position = json.loads(json.dumps(data.position(row)))
    fresh = stream(folder)
    read: list[int] = []
    text = fresh.corpus.text
    fresh.corpus.text = lambda split, source, index, value: read.append(index) or text(split, source, index, value)  # type: ignore[method-assign, func-returns-value]
    fresh.restore(position)
    assert rows(fresh, *range(row, row + 100)) == expected
    assert len(read) <= 512 + 256 or row == 0
    assert read[0] == position["index"]


def test_seeds_and_epochs_have_their_own_order(folder: Path) -> None:
    assert rows(stream(folder), *range(20)) != rows(stream(folder, seed=1), *range(20))
    data = stream(folder)
    epochs = [place.epoch for place in (rows(data, *range(1900)) and data._places)]
    assert max(epochs) >= 1


def test_separate_documents_have_borders_at_eos(folder: Path) -> None:
    joined, separate = stream(folder), stream(folder, documents="separate")
    for i in range(50):
        row, plain = separate[i], joined[i]
        ends = [t for t in range(LENGTH) if plain["input_ids"][t] == EOS]
        assert row["document_starts"].tolist() == [0, *(t + 1 for t in ends if t + 1 < LENGTH)]
        assert torch.equal(row["input_ids"], plain["input_ids"])
        assert [t for t in range(LENGTH) if row["targets"][t] == IGNORED] == ends


def test_a_set_without_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": ""}\n' * 30)
    with pytest.raises(DataError, match="no text to stream"):
        stream(tmp_path)[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"corpus": "python-stdlib", "streaming": True, "max_bytes": 10}, "only a hub corpus"),
        ({"corpus": "hf:x", "streaming": True}, "needs max_bytes"),
    ],
)
def test_what_cannot_be_streamed_is_refused(data: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        validated(RunConfig, {"data": data}, "run.yaml")
