from __future__ import annotations

from typing import Any

import pytest
import torch

from policies.driver import Driver


def top(driver: Driver, t: int, count: int, pool: int = 1) -> list[list[int]]:
    """Per kv head, the tokens with the largest attention of any head of the group in row t, pooled."""
    rows = driver.weights()[0, :, t, : t + 1].view(2, 2, -1).amax(1)
    if pool > 1:
        rows = torch.nn.functional.max_pool1d(rows, pool, 1, pool // 2)
    return [sorted(row.topk(count).indices.tolist()) for row in rows]


@pytest.mark.parametrize(("options", "name"), [({"capacity": 6, "stride": 1}, "every step"), ({"capacity": 99}, "all")])
def test_full_steps_or_full_capacity_are_dense(options: dict[str, Any], name: str) -> None:
    """Oracle 1."""
    driver = Driver("recycled", 30, **options)
    out = torch.cat([driver.feed(20), *(driver.feed() for _ in range(10))], dim=2)
    torch.testing.assert_close(out, driver.attention(torch.ones(30, 30).bool().tril()))


@pytest.mark.parametrize("pool", [1, 3])
def test_schedule_sets_and_counts(pool: int) -> None:
    """Oracles 3, 4, 5, 6: stride 4, capacity 6: the sets, what is scored, and the sizes at every step."""
    driver = Driver("recycled", 32, capacity=6, stride=4, pool=pool)
    driver.feed(20)
    small = top(driver, 19, 6, pool)
    assert driver.held("small") == small
    assert small[0] != small[1]
    pairs = 0
    for step in range(1, 12):
        t = 19 + step
        before = driver.applied.report().decode.pairs
        out = driver.feed()[:, :, 0]
        mask = torch.eye(32, dtype=torch.bool).repeat(1, 4, 1, 1)
        if step % 4 == 0:
            mask[0, :, t, : t + 1] = True
            small = top(driver, t, 6, pool)
            pairs = 4 * (t + 1)
        else:
            weights = driver.weights()[0, :, t - step % 4, : t - step % 4 + 1].view(2, 2, -1).amax(1)
            if pool > 1:
                weights = torch.nn.functional.max_pool1d(weights, pool, 1, pool // 2)
            for g in range(2):  # the least attended makes room; tokens since the full step stay
                old = [i for i in small[g] if i <= t - step % 4]
                (gone,) = set(old) - set(driver.held("small")[g])
                assert weights[g, gone] == weights[g, old].min()
                small[g] = sorted({*old, *range(t - step % 4 + 1, t + 1)} - {gone})
            for h in range(4):
                mask[0, h, t, small[h // 2]] = True
            pairs = 4 * 6
        torch.testing.assert_close(out, driver.attention(mask)[:, :, t])
        assert driver.held("small") == small, step
        assert driver.applied.report().decode.pairs - before == pairs
        assert driver.held() == [list(range(t + 1))] * 2
    torch.testing.assert_close(driver.state["kv"].keys, driver.k[:, :, :31], rtol=0, atol=0)


def test_an_unchosen_token_matters_at_the_full_step_only() -> None:
    """Oracle 2."""
    first, second = (Driver("recycled", 30, capacity=6, stride=4) for _ in range(2))
    one, other = top(first, 19, 6)
    unchosen = min(set(range(20)) - {*one, *other})
    second.v[:, :, unchosen] += 1
    first.feed(20), second.feed(20)
    for step in range(1, 5):
        same = torch.equal(first.feed(), second.feed())
        assert same == (step < 4)


def test_dynamic_schedule() -> None:
    """Oracle 7: full at every check, never, and by the mean cosine with the query of the last full step."""
    always = Driver("recycled", 40, capacity=6, check=3, threshold=1.0)
    never = Driver("recycled", 40, capacity=6, check=3, threshold=-1.0)
    some = Driver("recycled", 40, capacity=6, check=3, threshold=0.0)
    for driver in (always, never, some):
        driver.feed(20)
    full: dict[str, list[int]] = {"always": [], "never": [], "some": []}
    expected, reference = [], some.q[0, :, 19]
    for t in range(20, 40):
        for name, driver in (("always", always), ("never", never), ("some", some)):
            before = driver.applied.report().decode.pairs
            driver.feed()
            if driver.applied.report().decode.pairs - before > 4 * 6:
                full[name].append(t)
        cosine = torch.nn.functional.cosine_similarity(some.q[0, :, t], reference, dim=-1).mean()
        if (t - 19) % 3 == 0 and cosine <= 0:
            expected.append(t)
            reference = some.q[0, :, t]
    assert full["always"] == [22, 25, 28, 31, 34, 37]
    assert full["never"] == []
    assert full["some"] == expected
    assert 0 < len(expected) < 6
    assert all(head[-4:] == [36, 37, 38, 39] for head in never.held("small"))


def test_rows_decide_for_themselves() -> None:
    """Oracle 10: a row in a batch, padded or not, does what it does alone."""
    batch = Driver("recycled", 40, rows=3, padding=[0, 0, 5], capacity=6, check=2, threshold=0.0)
    outputs = torch.cat([batch.feed(20), *(batch.feed() for _ in range(20))], dim=2)
    for row, start in enumerate((0, 0, 5)):
        alone = Driver("recycled", 40 - start, capacity=6, check=2, threshold=0.0)
        alone.q, alone.k, alone.v = (x[row : row + 1, :, start:] for x in (batch.q, batch.k, batch.v))
        out = torch.cat([alone.feed(20 - start), *(alone.feed() for _ in range(20))], dim=2)
        torch.testing.assert_close(outputs[row : row + 1, :, start:], out)


def test_ablations() -> None:
    """Oracle 8: without refresh the copy stays; without full attention the sets are chosen all the same."""
    frozen = Driver("recycled", 30, capacity=6, stride=4, refresh=False)
    narrow = Driver("recycled", 30, capacity=6, stride=4, full_attention=False)
    usual = Driver("recycled", 30, capacity=6, stride=4)
    for driver in (frozen, narrow, usual):
        driver.feed(20)
        for _ in range(4):
            driver.feed()
    assert frozen.work("decode").pairs == usual.work("decode").pairs == 4 * (3 * 6 + 24)
    assert narrow.work("decode").pairs == 4 * 4 * 6
    assert narrow.held("small") == usual.held("small") == top(usual, 23, 6)
    assert frozen.held("small") != usual.held("small")
