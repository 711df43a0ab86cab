"""Needles in text: the answer's span is found or the prompt left out, and a needle begins behind a full stop."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from plait.benchmarks.needle import ANSWER, NEEDLE
from plait.data.tokenizers import byte_tokenizer
from plait.probes import needles
from plait.probes.needles import find_span, text_runs

LENGTHS = (1200, 1500)


@pytest.fixture
def haystack(tmp_path: Path) -> Path:
    draw = random.Random(0)
    words = ["river", "stone", "lamp", "window", "garden", "paper", "letter", "winter"]
    lines = [" ".join(draw.choices(words, k=draw.randint(4, 9))).capitalize() + "." for _ in range(400)]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("changed", "found"), [(0, True), (1, True), (2, False), (5, False)])
def test_a_span_is_found_where_less_than_a_tenth_of_its_tokens_changed(changed: int, found: bool) -> None:
    """As where tokens join with those beside them at the span's borders."""
    answer = list(range(100, 120))
    planted = [500 + i for i in range(changed)] + answer[changed:]
    prompt = [*range(40), *planted, *range(40, 80)]
    assert find_span(prompt, answer) == ((40, 60) if found else None)


def test_a_needle_begins_behind_a_full_stop_at_each_depth(haystack: Path) -> None:
    tokenizer, depths = byte_tokenizer(), 6
    runs = list(text_runs(tokenizer, haystack, LENGTHS, depths))
    assert len(runs) == len(LENGTHS) * depths
    begins, appended = [], []
    for run in runs:
        text = tokenizer.decode(run.prompt)
        place = text.index(NEEDLE.strip())
        begins.append(place)
        before = text[:place].rstrip()
        if before and not before.endswith("."):
            appended.append(text[place:])
        first, end = run.span
        assert tokenizer.decode(run.prompt[first:end]).strip() == ANSWER.strip()
    assert len(appended) <= len(LENGTHS)  # depth 100 goes to the end, wherever that is
    assert all("river" not in rest and "stone" not in rest for rest in appended)
    assert min(begins) < 5  # depth 0 walks back to the first token
    assert max(begins) > 0.5 * min(LENGTHS)


def test_a_prompt_whose_answer_is_not_found_is_left_out(haystack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [run.span for run in text_runs(byte_tokenizer(), haystack, LENGTHS, 4)]
    calls = iter(range(100))
    monkeypatch.setattr(
        needles, "find_span", lambda prompt, answer: None if next(calls) % 4 == 1 else find_span(prompt, answer)
    )
    left = [run.span for run in text_runs(byte_tokenizer(), haystack, LENGTHS, 4)]
    assert left == [span for index, span in enumerate(every) if index % 4 != 1]
