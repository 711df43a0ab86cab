from __future__ import annotations

import pytest
import torch

from plait.errors import CacheError, OptionError
from plait.policies import build
from plait.policies.flex_prefill import FlexPrefill
from plait.policies.importance import diagonal_sums
from plait.policies.vertical_slash import pieces
from policies.driver import Driver


def emitted_by_hand(offsets: list[int], end: int, block: int) -> list[int]:
    """The published walk, from the farthest diagonal to the nearest: starts of the pieces of one block of queries."""
    starts: list[int] = []
    low = high = None
    for offset in sorted(offsets, reverse=True):
        if offset >= end:
            continue
        need = max(end - offset, block)
        if low is None or high is None:
            low, high = need - block, need
        elif need > high + block:
            starts.extend(range(low, high, block))
            low, high = need - block, need
        elif need > high:
            high += block
    assert low is not None
    assert high is not None
    return [*starts, *range(low, high, block)]


@pytest.mark.parametrize("seed", range(8))
def test_pieces_are_those_of_the_walk_and_cover_every_diagonal(seed: int) -> None:
    """Oracle 7: every (row, row - offset) lies in a piece; no column is computed twice."""
    generator = torch.Generator().manual_seed(seed)
    block, size = 4, 40
    chosen = sorted({0, 1, 2, 3, *torch.randint(0, size, (6,), generator=generator).tolist()})
    for end in range(block, size + 1, block):
        starts, used = pieces((torch.tensor([[chosen]]), None), torch.tensor([[end]]), block)
        starts, used = starts[:, :, 0], used[:, :, 0]
        found = starts[used].tolist()
        assert found == emitted_by_hand(chosen, end, block)
        covered = [key for start in found for key in range(start, start + block)]
        assert len(covered) == len(set(covered))
        for row in range(end - block, end):
            assert all(row - offset in covered for offset in chosen if offset <= row)


def test_diagonal_sums() -> None:
    weights = torch.arange(12, dtype=torch.float64).view(1, 1, 2, 6)
    weights = weights.masked_fill(torch.arange(6) > torch.tensor([[4], [5]]), 0)
    # rows at positions 4 and 5: row 0 holds 0..4, row 1 holds 6..11
    assert diagonal_sums(weights, torch.tensor([[4, 5]])).flatten().tolist() == [15, 13, 11, 9, 7, 6]


def planted(policy: str, **options: object) -> Driver:
    """Keys that all late queries attend: column 9, and the diagonal at distance 23."""
    driver = Driver(policy, 64, query_heads=2, kv_heads=1, **options)
    driver.q[:] = 0
    driver.k[:] = 0
    driver.q[..., 0] = 8
    driver.k[:, :, 9, 0] = 9
    for first, speed in ((1, 2.0), (3, 0.1)):  # two clocks that agree at this distance only
        angle = torch.arange(64) * speed
        later = angle + 23 * speed
        driver.q[..., first], driver.q[..., first + 1] = 6 * angle.cos(), 6 * angle.sin()
        driver.k[..., first], driver.k[..., first + 1] = 6 * later.cos(), 6 * later.sin()
    return driver


def test_planted_column_and_diagonal_are_found() -> None:
    """Oracle 6: with one free place each beside the forced ones."""
    driver = planted("vertical_slash", vertical=5, slash=9, block=8, last_queries=16)
    seen = {}

    def choose(call: object) -> object:
        seen["columns"], seen["offsets"] = type(driver.policy).choose(driver.policy, call)  # type: ignore[attr-defined]
        return seen["columns"], seen["offsets"]

    driver.policy.choose = choose  # type: ignore[attr-defined]
    driver.feed(64)
    assert seen["columns"][0].tolist() == [[[0, 1, 2, 3, 9]] * 2]
    assert seen["offsets"][0].tolist() == [[[0, 1, 2, 3, 4, 5, 6, 7, 23]] * 2]


def test_only_the_pattern_is_computed() -> None:
    """Pairs and output are those of the mask of pieces and columns, built by the walk written out above."""
    driver = planted("vertical_slash", vertical=5, slash=9, block=8, last_queries=16)
    out = driver.feed(64)
    mask = torch.zeros(64, 64, dtype=torch.bool)
    for end in range(8, 65, 8):
        for start in emitted_by_hand([*range(8), 23], end, 8):
            mask[end - 8 : end, start : start + 8] = True
        mask[end - 8 : end, [0, 1, 2, 3, 9]] = True
    mask &= torch.ones(64, 64, dtype=torch.bool).tril()
    torch.testing.assert_close(out, driver.attention(mask))
    assert driver.work("prefill").pairs == 2 * int(mask.sum())
    assert driver.work("prefill").pairs < driver.work("prefill").dense_pairs
    assert driver.work("prefill").index_pairs == 2 * sum(range(49, 65))


@pytest.mark.parametrize(("scores", "coverage", "size"), [("even", 0.0, 6), ("even", 1.0, 32), ("one", 0.65, 6)])
def test_flex_sizes(scores: str, coverage: float, size: int) -> None:
    """Oracle 8: coverage 0 and one-hot weights give the minimum, coverage 1 everything."""
    policy = FlexPrefill(FlexPrefill.Options(coverage=coverage, least=6, block=2))
    shares = torch.full((1, 1, 32), 1 / 32, dtype=torch.float64)
    if scores == "one":
        shares = torch.nn.functional.one_hot(torch.tensor([[7]]), 32).double()
    assert policy.sizes(shares).tolist() == [[size]]


def test_flex_size_by_hand() -> None:
    policy = FlexPrefill(FlexPrefill.Options(coverage=0.8, least=1, block=1, sinks=1))
    # cumulated: .5, .75, .875, ...: two do not exceed 0.8, and one more covers it
    shares = torch.tensor([[[0.125, 0.5, 0.25, 0.0625, 0.0625]]])
    assert policy.sizes(shares).tolist() == [[3]]


def test_flex_heads_take_different_sizes() -> None:
    driver = planted("flex_prefill", coverage=0.6, least=8, block=8, last_queries=16)
    driver.q[:, 1] = 0  # an even head needs many columns
    driver.feed(64)
    even = driver.work("prefill").pairs
    driver = planted("flex_prefill", coverage=0.6, least=8, block=8, last_queries=16)
    driver.feed(64)
    assert driver.work("prefill").pairs < even < driver.work("prefill").dense_pairs


def test_budgets_that_do_not_hold_what_is_forced() -> None:
    with pytest.raises(OptionError, match="vertical=3"):
        build("vertical_slash", vertical=3)
    with pytest.raises(OptionError, match="slash=63"):
        build("vertical_slash", slash=63)
    with pytest.raises(OptionError, match="least=9"):
        build("flex_prefill", least=9)


def test_a_prompt_after_an_eviction_is_refused() -> None:
    driver = Driver(
        "prefill_decode",
        30,
        prefill={"name": "vertical_slash", "block": 4, "slash": 4},
        decode={"name": "streaming", "sinks": 1, "window": 6},
    )
    driver.feed(12)
    driver.feed(1)
    with pytest.raises(CacheError, match="every earlier token"):
        driver.feed(5)
