"""What recall tasks share: alphabets, words of several ids, sentences hidden in a haystack, answers word by word."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from plait.data.tasks.base import IGNORED, Ids, distinct

Places = npt.NDArray[np.int64]
REPEATED = 16  # ids of the sentence that is repeated as a haystack, where the alphabet has so many
_LARGEST = 2**63 - 1


def alphabets(first: int, vocab_size: int, parts: int) -> list[range]:
    """The ids ``first..vocab_size-1`` in ``parts`` neighbouring ranges of one size; the last also takes the rest."""
    size = max(0, vocab_size - first) // parts
    borders = [first + size * part for part in range(parts)] + [max(first, vocab_size)]
    return [range(low, high) for low, high in pairwise(borders)]


def words(rng: np.random.Generator, rows: int, count: int, tokens: int, alphabet: range) -> Ids:
    """``count`` random words of ``tokens`` ids for each row, ``(rows, count, tokens)``; a word may come twice."""
    return rng.integers(alphabet.start, alphabet.stop, (rows, count, tokens), dtype=np.int32)


def distinct_words(rng: np.random.Generator, rows: int, count: int, tokens: int, alphabet: range) -> Ids:
    """``count`` different words of ``tokens`` ids for each row, ``(rows, count, tokens)``; there must be so many."""
    size, head = len(alphabet), tokens
    while size**head > _LARGEST:  # words that differ in their first ids are different
        head -= 1
    numbers = distinct_numbers(rng, rows, size**head, count)
    digits = [numbers // size**place % size for place in reversed(range(head))]
    start = np.stack(digits, axis=2).astype(np.int32) + np.int32(alphabet.start)
    return np.concatenate([start, words(rng, rows, count, tokens - head, alphabet)], axis=2)


def distinct_numbers(rng: np.random.Generator, rows: int, high: int, count: int) -> Places:
    """``count`` different integers of ``[0, high)`` for each row, in random order; ``count <= high``.

    From a large range, repeated draws are drawn again until none is left: no integer is treated apart from another,
    so every arrangement is equally likely.
    """
    if high <= 2 * count:
        return distinct(rng, rows, 0, high, count).astype(np.int64)
    drawn = rng.integers(0, high, (rows, count))
    while (repeated := _repeated(drawn)).any():
        drawn[repeated] = rng.integers(0, high, np.count_nonzero(repeated))
    return drawn


def repeated_sentence(rows: int, times: int, tokens: int, alphabet: range) -> Ids:
    """The first ``tokens`` ids of the alphabet, again and again, ``(rows, times * tokens)``."""
    return np.tile(np.arange(alphabet.start, alphabet.start + tokens, dtype=np.int32), (rows, times))


def hide(hay: Ids, unit: int, sentences: Sequence[Ids], gaps: Places) -> Ids:
    """The haystack with sentences in its gaps.

    Args:
        hay: ``(rows, units * unit)``.
        unit: ids of a unit; no sentence stands inside one.
        sentences: M times ``(rows, tokens)``, each with its own number of tokens.
        gaps: ``(rows, M)``, different in a row; sentence m stands before unit ``gaps[:, m]``, after all units for
            ``gaps[:, m] == units``.
    """
    rows = len(hay)
    lengths = np.array([sentence.shape[1] for sentence in sentences])
    order = np.argsort(gaps, axis=1)
    before = np.empty_like(gaps)  # tokens of the sentences that stand earlier
    np.put_along_axis(before, order, np.cumsum(lengths[order], axis=1) - lengths[order], axis=1)
    starts = gaps * unit + before
    text = np.empty((rows, hay.shape[1] + lengths.sum()), np.int32)
    free = np.ones(text.shape, bool)
    row = np.arange(rows)[:, None]
    for start, sentence in zip(starts.T, sentences, strict=True):
        places = start[:, None] + np.arange(sentence.shape[1])
        text[row, places] = sentence
        free[row, places] = False
    text[free] = hay.reshape(-1)
    return text


def at_the_end(text: Ids, length: int, filler: int) -> Ids:
    """Rows of ``length`` ids that end with ``text``; fillers stand in front."""
    front = np.full((len(text), length - text.shape[1]), filler, np.int32)
    return np.concatenate([front, text], axis=1)


def next_token_targets(inputs: Ids, answers: npt.NDArray[np.bool_]) -> Ids:
    """Targets ``(rows, T)``: each id of an answer is predicted on the position before it; -100 elsewhere.

    Args:
        inputs: ``(rows, T)``.
        answers: ``(T,)`` or ``(rows, T)``, true where an id of an answer stands; never at the first position.
    """
    targets = np.full_like(inputs, IGNORED)
    targets[:, :-1] = np.where(answers[..., 1:], inputs[:, 1:], IGNORED)
    return targets


def _repeated(numbers: Places) -> npt.NDArray[np.bool_]:
    """True at each number that stands in an earlier place of its row (in sorted order) as well."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=1)
    repeated = np.zeros(numbers.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return repeated
