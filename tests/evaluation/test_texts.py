"""Bits per byte of a text as one measurement, whole or in a number of windows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plait.data.tokenizers import byte_tokenizer, encode
from plait.evaluation.batching import Batches
from plait.evaluation.language import text_perplexity
from plait.evaluation.subject import Subject
from plait.evaluation.texts import PIECE, TextMeasurement, prefix
from plait.models import PlaitConfig, PlaitForCausalLM


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    config = PlaitConfig(vocab_size=258, hidden_size=32, layer_types=["attention"], intermediate_size=32)
    return Subject.of(PlaitForCausalLM(config).eval(), byte_tokenizer())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number} is a number, è vero. " for number in range(800)), encoding="utf-8")
    assert len(path.read_text()) > PIECE
    return path


def test_a_limit_counts_windows_and_each_is_a_sample(subject: Subject, text: Path) -> None:
    told: list[tuple[int, int | None]] = []
    measurement = TextMeasurement(str(text), 50, windows=3)
    scores = measurement.measure(subject, Batches(2, subject.device), lambda n, total=None: told.append((n, total)))
    score = scores[0]
    windows = measurement.pieces(subject.tokenizer)
    sizes = [len(window.encode()) for window in windows]
    assert "".join(windows) == text.read_text()[: sum(map(len, windows))]
    assert len(score.per_sample) == 3
    assert all(49 <= size <= 50 for size in sizes), "whole characters, as many as fit"
    assert score.more["perplexity"]["tokens"] == score.more["perplexity"]["bytes"] == sum(sizes)
    assert told[0] == (0, 3 + (sum(sizes) - 1) // 50)
    assert sum(count for count, _ in told) == told[0][1]
    assert score.interval == "bootstrap"


def test_pieces_together_are_what_one_call_says(subject: Subject, text: Path) -> None:
    measurement = TextMeasurement(str(text), 64)
    bits, loss, hits, other = measurement.measure(subject)
    pieces = measurement.pieces(subject.tokenizer)
    assert len(pieces) == len(bits.per_sample) > 1
    whole = text_perplexity(subject.model, subject.tokenizer, pieces, length=64)
    assert bits.score == pytest.approx(whole["bits_per_byte"])
    for score, group in ((loss, whole), (hits, whole["ar_hits"]), (other, whole["other"])):
        assert (score.score, score.more["tokens"]) == (pytest.approx(group["loss"]), group["tokens"])
    each = [text_perplexity(subject.model, subject.tokenizer, [piece], length=64) for piece in pieces]
    assert bits.per_sample == pytest.approx([one["bits_per_byte"] for one in each])
    assert bits.weights == [len(piece.encode()) for piece in pieces]
    assert bits.low < bits.score < bits.high


def test_a_short_text_has_no_loss_by_context(subject: Subject, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("only this")
    score, *_ = TextMeasurement(str(path), 64).measure(subject)
    assert score.more["baselines"]["bytes"] == len("only this")
    assert (len(score.per_sample), score.interval, score.more["by_context"]) == (1, "none", [])


def test_prefix_is_the_longest_that_fits() -> None:
    tokenizer = byte_tokenizer()
    assert [prefix(tokenizer, "aèb", tokens) for tokens in (1, 2, 3, 4, 9)] == ["a", "a", "aè", "aèb", "aèb"]
    assert len(encode(tokenizer, [prefix(tokenizer, "è" * 100, 31)])[0]) == 30
