"""Byte n-grams with Witten-Bell smoothing, against counts by hand."""

from __future__ import annotations

import math
import random

import pytest

from plait.data.byte_ngrams import ByteNgrams, choose_length


def slow_probability(train: bytes, context: bytes, byte: int) -> float:
    """The formula, read from the text each time."""
    shorter = slow_probability(train, context[1:], byte) if context else 1 / 256
    size = len(context)
    after = [train[i + size] for i in range(len(train) - size) if train[i : i + size] == context]
    if not after:
        return shorter
    kinds = len(set(after))
    return (after.count(byte) + kinds * shorter) / (len(after) + kinds)


def test_one_byte_by_hand() -> None:
    """ "abab": p(a) = (2 + 2/256) / (4 + 2); after a came only b, twice."""
    single, pair = ByteNgrams(b"abab", 2).bits([b"ab"])
    p_a = (2 + 2 / 256) / 6
    assert single.tolist() == pytest.approx([-math.log2(p_a)] * 2)
    assert pair.tolist() == pytest.approx([-math.log2(p_a), -math.log2((2 + p_a) / 3)])


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_bits_are_those_of_the_formula(length: int) -> None:
    generator = random.Random(length)
    train = bytes(generator.choices(b"abcd\x00\xff", [5, 4, 3, 2, 1, 1], k=120))
    texts = [bytes(generator.choices(b"abcdx\x00", k=17)), b"", b"a", train[-6:], b"\xff" * 3]
    found = ByteNgrams(train, length).bits(texts)
    assert len(found) == length
    expected = [
        -math.log2(slow_probability(train, text[max(0, place - length + 1) : place], text[place]))
        for text in texts
        for place in range(len(text))
    ]
    assert found[-1].tolist() == pytest.approx(expected)


def test_probabilities_sum_to_one() -> None:
    grams = ByteNgrams(b"the cat sat on the mat", 4)
    for context in (b"", b"the", b"zzz", b" ma"):
        total = sum(2 ** -grams.bits([context + bytes([byte])])[-1][-1] for byte in range(256))
        assert total == pytest.approx(1)


def test_a_text_shorter_than_the_longest_gram() -> None:
    found = ByteNgrams(b"ab", 5).bits([b"ab"])
    assert found[-1].tolist() == pytest.approx(
        [-math.log2(slow_probability(b"ab", c, b)) for c, b in ((b"", 97), (b"a", 98))]
    )
    assert [len(one) for one in ByteNgrams(b"", 3).bits([b"ab"])] == [2, 2, 2]


def test_the_length_is_chosen_by_the_end_of_the_text() -> None:
    generator = random.Random(0)
    noise = bytes(generator.choices(range(256), k=20_000))
    assert choose_length(noise) == 1, "longer contexts of noise say nothing"
    assert choose_length(b"abcdefgh" * 400) > 1
