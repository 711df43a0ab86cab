from __future__ import annotations

import pytest
import torch

from plait.errors import OptionError
from plait.policies import build
from policies.driver import SIZE, Driver


def by_hand(weights: list[list[float]], **options: int) -> Driver:
    """A layer whose last query attends its tokens with these weights, one row a query head; one kv head."""
    wanted = torch.tensor(weights, dtype=torch.float64)
    heads, length = wanted.shape
    driver = Driver("tova", length, query_heads=heads, kv_heads=1, **options)
    driver.k[0, 0] = torch.eye(length, SIZE, dtype=torch.float64)
    driver.q.zero_()
    driver.q[0, :, -1, :length] = wanted.log() * SIZE**0.5
    return driver


def test_the_mean_over_heads_decides() -> None:
    """Means 0.35, 0.275 and 0.375: token 1 goes, though the second head has least use for token 0."""
    driver = by_hand([[0.6, 0.1, 0.3], [0.1, 0.45, 0.45]], capacity=2)
    driver.feed(3)
    assert driver.held() == [[0, 2]]


def test_the_newest_token_may_leave() -> None:
    driver = by_hand([[0.5, 0.3, 0.2]], capacity=2)
    driver.feed(3)
    assert driver.held() == [[0, 1]]


def test_tokens_leave_one_by_one_and_from_all_heads_alike() -> None:
    """The definition, step by step: softmax of the newest query over what is held, mean over four query heads."""
    driver = Driver("tova", 24, capacity=6)
    prompt = driver.feed(15)
    torch.testing.assert_close(prompt, driver.attention(torch.ones(24, 24).bool().tril())[:, :, :15])
    held = list(range(15))
    for t in range(14, 24):
        if t > 14:
            driver.feed()
            held.append(t)
        mean = sum(
            (driver.q[0, head, t] @ driver.k[0, head // 2, held].mT * SIZE**-0.5).softmax(-1) for head in range(4)
        )
        best = sorted(range(len(held)), key=lambda n, mean=mean: -float(mean[n]))[:6]  # type: ignore[misc,index]
        held = sorted(held[n] for n in best)
        assert driver.held() == [held, held]
    assert driver.work("decode").pairs == 4 * 7 * 9


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="'tova', option capacity=0: must be 1 or more"):
        build("tova", capacity=0)
