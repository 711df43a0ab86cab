from __future__ import annotations

import pytest
import torch

from plait.errors import OptionError
from plait.policies import build
from plait.policies.importance import pooled
from policies.driver import Driver

OPTIONS = {"capacity": 12, "last_queries": 5, "pool": 3, "sinks": 2, "recent": 4}


def scores_by_hand(driver: Driver, prompt: int, how: str) -> list[list[float]]:
    """Pooled attention of the last five queries by kv head, forced tokens at infinity."""
    weights = driver.weights()[0, :, prompt - 5 : prompt, :prompt].view(2, 2, 5, prompt)
    sums = weights.mean(1).sum(1) if how == "mean" else weights.amax(2).amax(1)
    out = []
    for head in sums.tolist():
        padded = [0.0, *head, 0.0]
        row = [sum(padded[i : i + 3]) / 3 for i in range(prompt)]
        out.append([float("inf") if i < 2 or i >= prompt - 4 else s for i, s in enumerate(row)])
    return out


@pytest.mark.parametrize("parts", [[30], [11, 17, 2], [28, 2]])
def test_the_best_of_the_prompt_stay(parts: list[int]) -> None:
    """Per kv head, sorted, with original keys; a prompt in chunks is compressed by its true last queries."""
    driver = Driver("snapkv", 34, **OPTIONS)
    for n in parts:
        driver.feed(n)
    assert driver.held() == [list(range(30))] * 2
    driver.feed()
    expected = []
    for row in scores_by_hand(driver, 30, "mean"):
        expected.append(sorted(sorted(range(30), key=lambda i, row=row: -row[i])[:12]) + [30])  # type: ignore[misc]
    assert driver.held() == expected
    torch.testing.assert_close(driver.state["kv"].keys[0, 1], driver.k[0, 1, expected[1]], rtol=0, atol=0)
    out = driver.feed()
    mask = torch.zeros(1, 4, 34, 34, dtype=torch.bool) | torch.eye(34, dtype=torch.bool)
    for h in range(4):
        mask[0, h, 31, [*expected[h // 2], 31]] = True
    torch.testing.assert_close(out[:, :, 0], driver.attention(mask)[:, :, 31])
    assert driver.work("decode").pairs == 4 * (13 + 14)
    assert driver.state.bytes() == 2 * 2 * 14 * 8 * 8


def test_one_token_too_many_evicts_one_per_head_never_a_forced_one() -> None:
    """Oracle 4."""
    driver = Driver("snapkv", 14, capacity=12, last_queries=5, pool=3, sinks=2, recent=4)
    driver.feed(13)
    driver.feed()
    for held in driver.held():
        (gone,) = set(range(14)) - set(held)
        assert 2 <= gone < 9


def test_pooling_counts_the_zeros_beyond_the_ends() -> None:
    """Oracle 10: a constant score 1 gives 11/21 at the borders."""
    out = pooled(torch.ones(1, 2, 60, dtype=torch.float64), 21)
    assert out[0, 0, 0] == pytest.approx(11 / 21)
    assert out[0, 1, -1] == pytest.approx(11 / 21)
    assert out[0, 0, 30] == pytest.approx(1)


def test_ada_shares_the_layers_budget() -> None:
    """Oracle 5: the sum is exactly C N, no head below the minimum, the free places go to the best of all heads."""
    driver = Driver("ada_snapkv", 34, **OPTIONS, least=0.6)
    driver.k[:, 1] *= 4  # one head's attention is peaked
    driver.feed(30)
    scores = scores_by_hand(driver, 30, "max")
    expected = [set(sorted(range(30), key=lambda i, row=row: -row[i])[:7]) for row in scores]  # type: ignore[misc]
    rest = sorted(((row[i], h, i) for h, row in enumerate(scores) for i in range(30) if i not in expected[h]))
    for _, h, i in rest[-2 * (12 - 7) :]:
        expected[h].add(i)
    driver.feed()
    assert driver.held() == [sorted(head) + [30] for head in expected]
    lengths = [len(head) - 1 for head in driver.held()]
    assert sum(lengths) == 24
    assert min(lengths) >= 7
    assert lengths[0] != lengths[1]
    assert driver.work("decode").pairs == 2 * (24 + 2)


def test_ada_with_equal_heads_is_equal() -> None:
    driver = Driver("ada_snapkv", 31, **OPTIONS)
    driver.k[:, 1] = driver.k[:, 0]
    driver.q[:, 2:] = driver.q[:, :2]
    driver.feed(30)
    driver.feed()
    assert driver.held()[0] == driver.held()[1]
    assert len(driver.held()[0]) == 13


def test_capacity_holds_what_is_forced() -> None:
    with pytest.raises(OptionError, match="132"):
        build("snapkv", capacity=131)
    assert build("ada_snapkv", capacity=1024).options.minimum == 204
    assert build("ada_snapkv", capacity=200).options.minimum == 132
