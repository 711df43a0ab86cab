"""A byte n-gram model with Witten-Bell smoothing: what counting alone knows of a text.

The probability of byte w after the context c of n - 1 bytes is (Witten and Bell, 1991, method C; in the interpolated
form of Chen and Goodman, 1999)::

    p(w | c) = (count(c w) + T(c) p(w | c')) / (count(c) + T(c))

where T(c) is the number of different bytes seen after c, count(c) how often c was followed by any byte, and c' the
context without its first byte. Below the empty context stands the uniform distribution over 256 bytes. A context that
was never seen leaves the shorter one's probability as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

#: The longest n-gram that is tried.
LONGEST = 5

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Counts:
    """n-grams of one length and their contexts, as big-endian codes in ascending order."""

    grams: Codes
    counts: Codes
    contexts: Codes
    totals: Codes
    kinds: Codes

    @classmethod
    def of(cls, codes: Codes) -> _Counts:
        """From the sorted codes of all n-grams of a text."""
        grams, counts = _runs(codes)
        before = grams >> 8
        contexts, kinds = _runs(before)
        ends = kinds.cumsum()
        sums = np.concatenate([[0], counts.cumsum()])
        return cls(grams, counts, contexts, sums[ends] - sums[ends - kinds], kinds)


class ByteNgrams:
    """Counts of a text's n-grams up to a length.

    Args:
        text: what is counted.
        longest: the longest n-gram, 1 to 7.
    """

    def __init__(self, text: bytes, longest: int = LONGEST) -> None:
        self.longest = longest
        data = np.frombuffer(text, np.uint8)
        whole = np.sort(_codes(data, longest))
        self._counts: list[_Counts] = []
        for n in range(1, longest + 1):
            tail = _codes(data[max(0, len(data) - longest + 1) :], n)  # n-grams that begin too late for the longest
            codes = whole >> 8 * (longest - n)
            self._counts.append(_Counts.of(np.insert(codes, np.searchsorted(codes, np.sort(tail)), np.sort(tail))))

    def bits(self, texts: Sequence[bytes]) -> list[npt.NDArray[np.float64]]:
        """How many bits each byte of some texts takes, ``(total bytes,)``, by length of the n-gram from 1 on.

        Args:
            texts: each with no context before its first byte.
        """
        data = np.frombuffer(b"".join(texts), np.uint8)
        lengths = [len(text) for text in texts]
        starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths) if texts else np.empty(0, np.int64)
        before = np.arange(len(data)) - starts  # bytes of the same text before each
        probability = np.full(len(data), 1 / 256)
        found = []
        for n, counts in enumerate(self._counts, start=1):
            codes = np.concatenate([np.zeros(min(n - 1, len(data)), np.int64), _codes(data, n)])
            total = _lookup(counts.contexts, counts.totals, codes >> 8)
            kinds = _lookup(counts.contexts, counts.kinds, codes >> 8)
            known = (before >= n - 1) & (total > 0)
            seen = _lookup(counts.grams, counts.counts, codes)
            mixed = (seen + kinds * probability) / np.maximum(total + kinds, 1)
            probability = np.where(known, mixed, probability)
            found.append(-np.log2(probability))
        return found


def choose_length(text: bytes, longest: int = LONGEST, held_out: int = 1 << 18) -> int:
    """The length of n-gram that predicts the end of a text best, counted on the rest.

    Args:
        text: the training text; its last tenth, at most ``held_out`` bytes, is predicted.
        longest: the longest length that is tried.
        held_out: bytes.
    """
    cut = len(text) - min(len(text) // 10, held_out)
    totals = [values.sum() for values in ByteNgrams(text[:cut], longest).bits([text[cut:]])]
    return int(np.argmin(totals)) + 1


def _codes(data: Bytes, n: int) -> Codes:
    """The codes of all n-grams of a text, in its order; the first byte counts most."""
    count = max(0, len(data) - n + 1)
    codes = np.zeros(count, np.int64)
    for offset in range(n):
        codes = codes << 8 | data[offset : offset + count]
    return codes


def _runs(values: Codes) -> tuple[Codes, Codes]:
    """The different values of a sorted array, and how often each occurs."""
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, int)
    return values[first], np.diff(np.append(first, len(values)))


def _lookup(keys: Codes, values: Codes, wanted: Codes) -> Codes:
    """The value of each wanted key, 0 for those that are absent."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
