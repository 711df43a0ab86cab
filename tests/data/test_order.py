"""Permutations and hashes that need no storage."""

from __future__ import annotations

from itertools import pairwise

import pytest

from plait.data.order import Permutation, stable_hash

HASH = 17842475518222080885


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_visits_every_element_once(size: int) -> None:
    permutation = Permutation(size, key=7)
    assert sorted(permutation(i) for i in range(size)) == list(range(size))


def test_keys_give_different_orders_without_fixed_pattern() -> None:
    orders = [[Permutation(1000, key)(i) for i in range(1000)] for key in (1, 2)]
    assert orders[0] != orders[1]
    for order in orders:
        steps = {(b - a) % 1000 for a, b in pairwise(order)}
        assert len(steps) > 500  # an affine map would have one step
        assert sum(place == value for place, value in enumerate(order)) < 10


def test_hashes_stay_the_same_for_ever() -> None:
    """Splits and orders hang on them: another value would move text from training into the held-out splits."""
    assert stable_hash("a/b.py", 3) == HASH


def test_parts_are_kept_apart() -> None:
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
