from __future__ import annotations

import pytest
import torch

from plait.errors import OptionError
from plait.policies import build
from policies.driver import Driver


def bounds_by_hand(driver: Driver, t: int, page: int) -> torch.Tensor:
    """``u = sum_d max(q_d min_d, q_d max_d)`` of each page, ``(H, P)``, at position t."""
    out = []
    for h in range(4):
        q, k = driver.q[0, h, t], driver.k[0, h // 2, : t + 1]
        out.append([float(torch.maximum(q * p.amin(0), q * p.amax(0)).sum()) for p in k.split(page)])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("share", [True, False])
def test_each_step_reads_the_current_page_and_the_best(share: bool) -> None:
    driver = Driver("quest", 50, page=4, budget=8, share_pages=share)
    driver.feed(30)
    for t in range(30, 50):
        u = bounds_by_hand(driver, t, 4)
        if share:
            u = (u.view(2, 2, -1).sum(1)).repeat_interleave(2, dim=0)
        current = t // 4
        mask = torch.zeros(1, 4, 50, 50, dtype=torch.bool)
        for h in range(4):
            for p in [current, *u[h, :current].topk(2).indices.tolist()]:
                mask[0, h, t, 4 * p : min(4 * p + 4, t + 1)] = True
        mask |= torch.eye(50, dtype=torch.bool)
        before = driver.applied.report().decode.pairs
        torch.testing.assert_close(driver.feed()[:, :, 0], driver.attention(mask)[:, :, t])
        assert driver.applied.report().decode.pairs - before == 4 * (8 + t % 4 + 1)
    assert driver.work("prefill").pairs == 4 * 30 * 31 // 2


def test_bounds_are_above_every_product_and_exact_for_pages_of_one() -> None:
    """Oracle 2."""
    for page in (1, 4):
        driver = Driver("quest", 21, page=page, budget=page)
        driver.feed(20)
        seen = {}
        bounds = driver.policy.bounds  # type: ignore[attr-defined]
        driver.policy.bounds = lambda call: seen.setdefault("u", bounds(call))  # type: ignore[attr-defined] # noqa: B023
        driver.policy.options.__dict__["share_pages"] = False
        driver.feed()
        products = (driver.q[0, :, 20, None] @ driver.k[0].repeat_interleave(2, 0).mT).squeeze(1)
        best = torch.stack([p.amax(1) for p in products.split(page, dim=1)], dim=1)
        if page == 1:
            torch.testing.assert_close(seen["u"][0], best)
        assert bool((seen["u"][0] >= best - 1e-12).all())


def test_pages_follow_the_tokens() -> None:
    """Pages updated step by step, in chunks and after a crop are those computed at once."""
    whole = Driver("quest", 23, page=4, budget=4)
    whole.feed(23)
    parts = Driver("quest", 23, page=4, budget=4)
    for n in (6, 1, 1, 1, 9):
        parts.feed(n)
    parts.k[:, :, 18:], kept = 9.0, parts.k[:, :, 18:].clone()
    parts.feed(3)
    parts.state.crop(3)
    parts.seen = 18
    parts.k[:, :, 18:] = kept
    parts.feed(5)
    for name in ("low", "high"):
        torch.testing.assert_close(getattr(parts.state["pages"], name), getattr(whole.state["pages"], name))
    assert whole.state["pages"].bytes() == 2 * 2 * 6 * 8 * 8


def test_bytes_read_are_pages_and_statistics() -> None:
    driver = Driver("quest", 33, page=4, budget=8)
    driver.feed(32)
    driver.feed()
    statistics, tokens = 2 * 2 * 9 * 8 * 8, 2 * 2 * (8 + 1) * 8 * 8  # the last page has one token
    assert driver.work("decode").bytes_read == statistics + tokens


def test_budget_must_be_whole_pages() -> None:
    with pytest.raises(OptionError, match="multiple"):
        build("quest", budget=24, page=16)
