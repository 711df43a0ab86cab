"""What gzip, xz and a byte n-gram make of the bytes that a model is measured on."""

from __future__ import annotations

import gzip
import lzma
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import plait.evaluation.baselines as baselines
from plait.data import TextData
from plait.data.byte_ngrams import ByteNgrams, choose_length
from plait.data.tokenizers import token_bytes
from plait.evaluation.baselines import measured_windows, text_baselines
from plait.runs.config import DataSection


def data(folder: Path, tokenizer: str = "bytes", documents: Literal["join", "separate"] = "join") -> TextData:
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    for number in range(200):
        (texts / f"{number}.txt").write_text(f"{number} caffè, {number * 7} più tè.\n" * 3, encoding="utf-8")
    section = DataSection(corpus=f"text:{texts}", tokenizer=tokenizer, length=20, documents=documents)
    return TextData(section, folder / "data", 0)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:280"])
def test_bytes_of_tokens_are_those_of_the_text(tmp_path: Path, tokenizer: str) -> None:
    text = data(tmp_path, tokenizer)
    table = token_bytes(text.tokenizer)
    spelt = b"".join(table[index] for index in text.packed("test").tokens.tolist())
    assert spelt == b"".join(one.text.encode() for one in text.corpus.documents("test"))


def test_baselines_are_those_of_the_measured_bytes(tmp_path: Path) -> None:
    text = data(tmp_path)
    dataset = text.test_dataset(9)
    found = text_baselines(text, dataset)
    rows = sorted(range(len(dataset)), key=dataset.begin)
    begins = [dataset.begin(row) for row in rows]
    tokens = text.packed("test").tokens.tolist()
    windows = [bytes(token for token in tokens[begin : begin + 21] if token < 256) for begin in begins]
    scored = [bytes(token for token in tokens[begin + 1 : begin + 21] if token < 256) for begin in begins]
    joined = b"".join(scored)
    assert found["bytes"] == len(joined)
    assert found["gzip"] == 8 * len(gzip.compress(joined, 9, mtime=0)) / len(joined)
    assert found["xz"] == 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / len(joined)
    train = b"".join(one.text.encode() for one in text.corpus.documents("train"))
    length = choose_length(train)
    bits = [
        ByteNgrams(train, length).bits([window])[-1][len(window) - len(part) :]
        for window, part in zip(windows, scored, strict=True)
    ]
    assert found["ngram"]["length"] == length
    assert found["ngram"]["train_bytes"] == len(train)
    assert math.isclose(found["ngram"]["bits_per_byte"], np.concatenate(bits).mean())


def test_bytes_that_are_not_predicted_do_not_count(tmp_path: Path) -> None:
    joined, apart = data(tmp_path), data(tmp_path, documents="separate")
    both = [measured_windows(one, one.test_dataset(40)) for one in (joined, apart)]
    assert both[0].texts == both[1].texts
    assert len(both[1].predicted) < len(both[0].predicted), "the first byte of a document has nothing before it"


def test_a_second_call_reads_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = data(tmp_path)
    first = text_baselines(text, text.test_dataset(4))
    monkeypatch.setattr(baselines, "measured_windows", None)
    assert text_baselines(text, text.test_dataset(4)) == first
