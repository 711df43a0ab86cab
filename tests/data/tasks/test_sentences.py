"""Alphabets, different words, sentences in a haystack."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from plait.data.tasks.sentences import alphabets, distinct_numbers, distinct_words, hide, next_token_targets


def test_alphabets_are_neighbours_of_one_size_and_the_last_takes_the_rest() -> None:
    assert alphabets(3, 20, 3) == [range(3, 8), range(8, 13), range(13, 20)]
    assert alphabets(4, 12, 2) == [range(4, 8), range(8, 12)]


@pytest.mark.parametrize(("high", "count"), [(4, 3), (7, 3)])  # a shuffle, and draws again
def test_every_arrangement_of_numbers_is_equally_likely(high: int, count: int) -> None:
    drawn = distinct_numbers(np.random.default_rng(0), 40_000, high, count)
    found = np.unique(drawn, axis=0, return_counts=True)
    arrangements = np.prod(np.arange(high, high - count, -1))
    assert len(found[0]) == arrangements  # all of them, and so none with a number twice
    assert stats.chisquare(found[1]).pvalue > 1e-3


def test_words_differ_and_use_all_of_their_alphabet() -> None:
    drawn = distinct_words(np.random.default_rng(0), 50, 9, 2, range(5, 8))  # all nine words there are
    for row in drawn.tolist():
        assert sorted(row) == [[a, b] for a in (5, 6, 7) for b in (5, 6, 7)]


def test_words_with_more_combinations_than_int64() -> None:
    drawn = distinct_words(np.random.default_rng(0), 300, 4, 8, range(10, 5010))  # 5000 ** 8 is above 2 ** 63
    assert drawn.shape == (300, 4, 8)
    for place in range(8):
        counts = np.histogram(drawn[:, :, place], bins=10, range=(10, 5010))[0]
        assert counts.sum() == 1200
        assert stats.chisquare(counts).pvalue > 1e-3


def test_sentences_in_a_haystack() -> None:
    hay = np.array([[1, 2, 3, 4, 5, 6]] * 2, dtype=np.int32)  # three units of two
    long = np.array([[70, 71, 72]] * 2, dtype=np.int32)
    short = np.array([[80], [81]], dtype=np.int32)
    gaps = np.array([[1, 0], [1, 3]])
    assert hide(hay, 2, [long, short], gaps).tolist() == [
        [80, 1, 2, 70, 71, 72, 3, 4, 5, 6],
        [1, 2, 70, 71, 72, 3, 4, 5, 6, 81],
    ]


def test_targets_stand_before_the_answer() -> None:
    inputs = np.array([[5, 6, 7, 8]], dtype=np.int32)
    assert next_token_targets(inputs, np.array([False, False, True, True])).tolist() == [[-100, 7, 8, -100]]
