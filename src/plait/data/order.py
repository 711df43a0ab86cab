"""Hashes and permutations that are the same on every machine and in every process."""

from __future__ import annotations

import hashlib

_MASK = (1 << 64) - 1


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of the parts' text; unlike ``hash``, it does not change between processes."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Permutation:
    """A pseudo-random permutation of ``range(size)`` that stores nothing but its key.

    Four Feistel rounds permute the smallest square power of two that holds ``size``; values outside the range are
    permuted again until they fall inside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).

    Args:
        size: number of elements, at least 1.
        key: selects the permutation.
    """

    def __init__(self, size: int, key: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [_mix(key + i) for i in range(4)]

    def __call__(self, i: int) -> int:
        """The element at place ``i``."""
        mask = (1 << self._half) - 1
        while True:
            left, right = i >> self._half, i & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(key ^ right) & mask)
            i = left << self._half | right
            if i < self.size:
                return i
