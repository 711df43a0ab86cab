"""Frequent words: Zipf's counts by hand, vocabulary, growth in steps."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from benchmarks.ruler.material import task, tokenizer
from plait.benchmarks.base import Prompt

FRAME = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. {0}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text? Answer: According to the coded text above, the three most "
    "frequently appeared words are:"
)


def words(prompt: Prompt) -> list[str]:
    return prompt.text.split("coded words. ")[1].split("\n")[0].split(" ")


def test_frame_counts_and_references() -> None:
    benchmark = task("fwe", length=2000)
    for index in range(5):
        prompt = benchmark.prompt(index, tokenizer())
        found = words(prompt)
        assert prompt.text == FRAME.format(" ".join(found))
        size = int(prompt.facts["size"])
        vocabulary = (2000 - 50) // 50
        expected = [int(size / rank**2 / (math.pi**2 / 6)) for rank in range(1, vocabulary + 1)]
        counts = Counter(found)
        assert sorted(counts.values(), reverse=True) == [count for count in expected if count]
        assert counts["..."] == expected[0]
        assert [counts[word] for word in prompt.references] == expected[1:4]
        assert expected[3] > expected[4]
        assert all(re.fullmatch("[a-z]{6}", word) for word in counts if word != "...")
        assert prompt.max_new_tokens == 50


def test_counts_by_hand() -> None:
    """N = 1000: 1000 / 1.644934 = 607.9; a quarter, a ninth, a sixteenth of it are 151.98, 67.5, 37.99."""
    draft = task("fwe", length=8000).draft(0, 1000, tokenizer())
    counts = Counter(draft.question.split("coded words. ")[1].split("\n")[0].split(" "))
    assert [count for _, count in counts.most_common(4)] == [607, 151, 67, 37]
    many = task("fwe", length=8000).draft(0, 100_000, tokenizer())
    assert len(set(many.question.split("coded words. ")[1].split("\n")[0].split(" "))) == 159  # 7950 / 50


@pytest.mark.parametrize("length", [2050, 9000, *range(4096, 4496, 40)])
def test_size_grows_in_steps_of_a_32nd_and_stops_below_the_limit(length: int) -> None:
    benchmark = task("fwe", length=length)
    room = length - 50
    size = benchmark.largest(tokenizer())
    assert (size - room // 6) % (room // 32) == 0
    assert benchmark.tokens(0, size, tokenizer()) < room <= benchmark.tokens(0, size + room // 32, tokenizer())


def test_from_53_words_on_the_answer_is_determined() -> None:
    """Rank 4 is more frequent than rank 5; with 52 words both stand once."""
    for size in range(53, 3000):
        assert int(size / 16 / (math.pi**2 / 6)) > int(size / 25 / (math.pi**2 / 6))
    assert int(52 / 16 / (math.pi**2 / 6)) == int(52 / 25 / (math.pi**2 / 6)) == 1
    assert task("fwe").smallest(0) == 53
