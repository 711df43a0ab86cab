from __future__ import annotations

import torch

from policies.driver import Driver


def test_tokens_with_most_attention_and_the_recent_ones_stay() -> None:
    """Sums over queries and the group's heads, step by step, written out."""
    driver = Driver("h2o", 24, heavy=3, recent=4)
    out = driver.feed(15)
    torch.testing.assert_close(out, driver.attention(torch.ones(24, 24).bool().tril())[:, :, :15])
    weights = driver.weights()[0, :, :15, :15]
    score = [dict(enumerate(weights[2 * g : 2 * g + 2].sum((0, 1)).tolist())) for g in range(2)]
    for t in range(15, 25):
        for g in range(2):
            recent = sorted(score[g])[-4:]
            heavy = sorted(set(score[g]) - set(recent), key=lambda i, g=g: -score[g][i])[:3]  # type: ignore[misc]
            score[g] = {i: score[g][i] for i in (*heavy, *recent)}
        assert driver.held() == [sorted(head) for head in score]
        if t == 24:
            break
        driver.feed()
        for g in range(2):
            places = [*sorted(score[g]), t]
            rows = driver.q[0, 2 * g : 2 * g + 2, t] @ driver.k[0, g, places].mT * 8**-0.5
            new = rows.softmax(-1).sum(0).tolist()
            score[g] = {i: score[g].get(i, 0.0) + new[n] for n, i in enumerate(places)}
    assert driver.work("decode").pairs == 4 * 9 * 8
    assert driver.state["kv"].score.shape == (1, 2, 7)
