"""The forms of the papers' own code, beside those of The Sparse Frontier: each against its definition written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import plait
from plait.errors import OptionError
from plait.policies import build
from policies.driver import Driver
from policies.tiny_models import decoder, tokens

PROMPT = 40


def scores_of_the_paper(driver: Driver, window: int, pool: int, how: str) -> Tensor:
    """SnapKV's own steps: weights of the window on the prefix, summed and pooled, ``(G, prefix)``."""
    weights = driver.weights()[0, :, PROMPT - window : PROMPT, : PROMPT - window]
    pooling = F.avg_pool1d if how == "mean" else F.max_pool1d
    sums = weights.unflatten(0, (2, 2)).mean(1).sum(1)
    return pooling(sums[:, None], pool, stride=1, padding=pool // 2)[:, 0]


@pytest.mark.parametrize("how", ["mean", "max"])
def test_snapkv_over_the_prefix(how: str) -> None:
    options: dict[str, Any] = {"capacity": 16, "last_queries": 6, "recent": 6, "sinks": 0, "pool": 5, "pooling": how}
    differ = 0
    for seed in range(8):
        held = {}
        for form in ("prefix", "prompt"):
            driver = Driver("snapkv", PROMPT + 1, seed=seed, **options, pool_over=form)
            driver.feed(PROMPT)
            driver.feed()
            held[form] = [row[:-1] for row in driver.held()]
        for row, scores in zip(held["prefix"], scores_of_the_paper(driver, 6, 5, how), strict=True):
            assert row[10:] == list(range(PROMPT - 6, PROMPT)), "the window itself"
            best = scores.topk(10).values  # neighbours tie under a maximum
            torch.testing.assert_close(scores[row[:10]].sort(descending=True).values, best)
        differ += held["prefix"] != held["prompt"]
    assert differ, "the form of The Sparse Frontier pools over the window as well"


def test_snapkv_over_the_prefix_keeps_the_window() -> None:
    with pytest.raises(OptionError, match="raise it"):
        build("snapkv", pool_over="prefix", recent=8, last_queries=16, capacity=64)


def test_ada_blends_what_heads_win_with_an_equal_share() -> None:
    window, capacity, least = 6, 16, 0.2
    driver = Driver(
        "ada_snapkv",
        PROMPT + 1,
        capacity=capacity,
        last_queries=window,
        recent=window,
        sinks=0,
        pool=5,
        least=least,
        pool_over="prefix",
        over_queries="sum",
        floor="blended",
    )
    driver.k[:, 1] *= 3  # one head's attention is peaked
    driver.feed(PROMPT)
    sums = driver.weights()[0, :, PROMPT - window : PROMPT, : PROMPT - window].unflatten(0, (2, 2)).mean(1).sum(1)
    scores = F.avg_pool1d(sums[:, None], 5, stride=1, padding=2)[:, 0]
    base = capacity - window
    winners = scores.flatten().topk(2 * base).indices // scores.shape[1]
    expected = []
    for head in range(2):
        size = round(int((winners == head).sum()) * (1 - least) + int(least * base))
        expected.append(sorted([*scores[head].topk(size).indices.tolist(), *range(PROMPT - window, PROMPT)]))
    driver.feed()
    assert [row[:-1] for row in driver.held()] == expected
    assert len(expected[0]) != len(expected[1])


def test_ragged_heads_hold_what_they_keep() -> None:
    driver = Driver("ada_snapkv", 35, capacity=12, last_queries=5, pool=3, sinks=2, recent=4)
    driver.k[:, 1] *= 4
    driver.feed(34)
    driver.feed()
    store = driver.state["kv"]
    kept = [len(row) for row in driver.held()]
    assert min(kept) < max(kept)
    assert store.bytes() == 2 * sum(kept) * 8 * 8
    assert store.keys is None
    assert store.flat_keys.nbytes + store.flat_values.nbytes == store.bytes() + 2 * 2 * store.room * 8 * 8
    assert driver.applied.report().bytes_held == store.bytes()


def test_quest_leaves_first_layers_dense() -> None:
    model = decoder("llama")
    ids = tokens(1, 30)
    with plait.policy(model, "quest", page=2, budget=4, dense_layers=1) as applied, torch.no_grad():
        model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        report = applied.report()
    assert report.served == (1,)
    first, second = (report.layers[index]["decode"] for index in (0, 1))
    assert first.pairs == first.dense_pairs == 4 * (31 + 32 + 33 + 34)
    assert second.pairs == 4 * (4 + 2 - 1 + 4 + 2 + 4 + 2 - 1 + 4 + 2)
    with pytest.raises(OptionError, match="would do nothing"), plait.policy(model, "quest", dense_layers=2):
        pass


def test_minference_takes_its_own_counts() -> None:
    """The first ``sinks`` columns and the ``near`` nearest diagonals, whatever the block; the rest by their sums."""
    driver = Driver("vertical_slash", PROMPT, vertical=9, slash=12, sinks=6, near=10, last_queries=8, block=4)
    seen: dict[str, Any] = {}
    choose = driver.policy.choose  # type: ignore[attr-defined]
    driver.policy.choose = lambda call: seen.setdefault("chosen", choose(call))  # type: ignore[attr-defined]
    driver.feed(PROMPT)
    weights = driver.weights()[0, :, -8:]
    (columns, _), (diagonals, _) = seen["chosen"]
    for head in range(4):
        vertical = weights[head].sum(0)
        slash = torch.tensor([float(weights[head].diagonal(PROMPT - 8 - o).sum()) for o in range(PROMPT)])
        vertical[:6], slash[:10] = float("inf"), float("inf")
        assert columns[0, head].tolist() == sorted(vertical.topk(9).indices.tolist())
        assert diagonals[0, head].tolist() == sorted(slash.topk(12).indices.tolist())
    with pytest.raises(OptionError, match="10 nearest"):
        build("vertical_slash", slash=9, near=10, block=4)


def logits_by_hand(model: Any, ids: Tensor, sinks: int, window: int) -> Tensor:
    """A Llama of one layer in which every query sees its cache alone, at positions counted within it."""
    layer = model.model.layers[0]
    attention, length = layer.self_attn, ids.shape[1]
    x = model.model.embed_tokens(ids)
    normed = layer.input_layernorm(x)
    size = attention.head_dim
    q, k, v = (p(normed).view(length, -1, size).transpose(0, 1) for p in _projections(attention))
    k, v = (y.repeat_interleave(q.shape[0] // k.shape[0], dim=0) for y in (k, v))
    rows = []
    for i in range(length):
        cached = [j for j in range(i + 1) if j < sinks or i - j < window]
        turned = _rotated(model, k[:, cached], torch.arange(len(cached)))
        query = _rotated(model, q[:, i : i + 1], torch.tensor([len(cached) - 1]))
        rows.append((query @ turned.mT * size**-0.5).softmax(-1) @ v[:, cached])
    o = torch.cat(rows, dim=1).transpose(0, 1).reshape(1, length, -1)
    x = x + attention.o_proj(o)
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))


def _projections(attention: Any) -> tuple[Any, Any, Any]:
    return attention.q_proj, attention.k_proj, attention.v_proj


def _rotated(model: Any, x: Tensor, positions: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    base = model.config.rope_parameters["rope_theta"]
    angles = positions[:, None] * base ** (-torch.arange(half) / half)
    left, right = x[..., :half], x[..., half:]
    return torch.cat(
        [left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], dim=-1
    ).to(x.dtype)


@pytest.mark.parametrize("parts", [[26], [1] * 26, [9, 1, 16]])
def test_streaming_counts_positions_in_the_cache(parts: list[int]) -> None:
    model = decoder("llama", num_hidden_layers=1)
    ids = tokens(1, 26)
    with torch.no_grad():
        expected = logits_by_hand(model, ids, 3, 6)
        with plait.policy(model, "streaming", sinks=3, window=6, renumber=True) as applied:
            cache, found = None, []
            for piece in ids.split(parts, dim=1):
                out = model(piece, use_cache=True, **({} if cache is None else {_cache_name(): cache}))
                cache = out[_cache_name()]
                found.append(out.logits)
            report = applied.report()
        with plait.policy(model, "streaming", sinks=3, window=6) as plain:
            other = model(ids).logits
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=3e-5)
    assert report.pairs == plain.report().pairs
    assert not torch.allclose(other, expected, atol=1e-2), "with the text's own positions it is another output"


def _cache_name() -> str:
    from plait.models.cache import CACHE_NAME

    return CACHE_NAME


def test_renumbering_needs_positions_that_can_be_turned() -> None:
    learned = decoder("gpt2", n_embd=32, n_head=4, n_layer=2)
    for model in (learned, decoder("plait", rope_base=None)):
        with pytest.raises(OptionError, match="renumber=True"), plait.policy(model, "streaming", renumber=True):
            pass
        with pytest.raises(OptionError, match="similarity='raw'"), plait.policy(model, "recycled", similarity="raw"):
            pass
