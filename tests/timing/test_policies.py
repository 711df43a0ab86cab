"""The benchmark of policies times what it says, at small sizes."""

from __future__ import annotations

import pytest

from plait.errors import CatalogError
from plait.timing.policies import chosen_policies, time_policies


def test_both_phases_are_timed_with_pairs_cache_and_error() -> None:
    told: list[str] = []
    dense, streaming = time_policies(["dense", "streaming"], 96, 1200, 3, told.append)[1::2]
    assert (dense.phase, dense.tokens, dense.pairs, dense.cache) == ("decode", 1200, 1.0, 1.0)
    assert dense.error < 1e-4
    assert streaming.pairs == pytest.approx(1028 / 1200, abs=0.03)
    assert streaming.error > 1e-3
    assert streaming.speed.low <= streaming.speed.median <= streaming.speed.high
    assert told == [
        "dense, 1200 tokens",
        *(f"{n}, {p}" for n in ("dense", "streaming") for p in ("prefill of 96", "one token after 1200")),
    ]


def test_all_policies_but_the_combinators_and_unknown_ones() -> None:
    names = chosen_policies([])
    assert "quest" in names
    assert "per_layer" not in names
    with pytest.raises(CatalogError):
        chosen_policies(["nothing"])
