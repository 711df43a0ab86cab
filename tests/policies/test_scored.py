"""A policy that evicts by a score is one function; budgets by head and layer, and chunks, work on any of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import plait
from plait import catalog
from plait.errors import OptionError
from plait.policies import Call, build
from plait.policies.scored import ScoredPolicy, share_among_heads
from plait.runtime.store import Keys
from policies.driver import Driver
from policies.tiny_models import decoder, generate, tokens

SCORED = [name for name in catalog.names("policy") if issubclass(catalog.get(name, "policy").load(), ScoredPolicy)]


class KeyNorm(ScoredPolicy):
    """Short keys stay (2406.11430)."""

    def score(self, call: Call, keys: Keys) -> Tensor:
        return -keys.keys.norm(dim=-1)


class KeyNormOfPrompts(KeyNorm):
    evicts_after = "prompt"


def shortest(driver: Driver, tokens: int, capacity: int, sinks: int, recent: int) -> list[list[int]]:
    """What one eviction leaves of the first tokens."""
    kept = []
    for head in range(2):
        always = {*range(sinks), *range(tokens - recent, tokens)}
        order = driver.k[0, head, :tokens].norm(dim=-1).argsort().tolist()
        rest = [token for token in order if token not in always][: capacity - len(always)]
        kept.append(sorted(always | set(rest)))
    return kept


def test_one_function_is_a_policy() -> None:
    driver = Driver(KeyNorm(KeyNorm.Options(capacity=10, sinks=2, recent=3)), 30)
    driver.feed(25)
    assert driver.held() == shortest(driver, 25, 10, 2, 3)
    for _ in range(5):
        driver.feed()
        assert all(len(head) == 10 for head in driver.held())
    assert driver.work("decode").pairs == 4 * 5 * 11


def test_a_prompt_is_cut_once() -> None:
    driver = Driver(KeyNormOfPrompts(KeyNorm.Options(capacity=10, sinks=1)), 40)
    driver.feed(20)
    driver.feed(10)
    assert all(head == list(range(30)) for head in driver.held())
    driver.feed()
    cut = shortest(driver, 30, 10, 1, 0)
    assert driver.held() == [[*head, 30] for head in cut]
    driver.feed()
    assert driver.held() == [[*head, 30, 31] for head in cut], "what is decoded stays"
    driver.feed(4)
    driver.feed()
    assert all(len(head) == 11 for head in driver.held()), "after another prompt all that is held is cut"


def test_padded_rows_keep_what_they_keep_alone() -> None:
    options = {"capacity": 8, "sinks": 1, "recent": 2}
    together = Driver(KeyNorm(KeyNorm.Options(**options)), 26, rows=2, padding=[6, 0])
    alone = Driver(KeyNorm(KeyNorm.Options(**options)), 20)
    alone.k = together.k[:1, :, 6:]
    together.feed(24)
    alone.feed(18)
    together.feed()
    alone.feed()
    assert together.held(row=0) == alone.held()


def test_options_that_do_not_hold_what_is_always_kept() -> None:
    with pytest.raises(OptionError, match="7 sinks and recent"):
        KeyNorm.Options(capacity=6, sinks=3, recent=4)


def test_heads_share_a_budget_over_any_score() -> None:
    """Half of the layer's tokens by rank over both heads, a fifth of the capacity at least in each."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 2, 30, generator=generator) + torch.tensor([[[2.0], [0.0]]])
    index, valid = share_among_heads(scores, 10, 2)
    kept = [index[0, g][slice(None) if valid is None else valid[0, g]].tolist() for g in range(2)]
    own = [set(scores[0, g].topk(2).indices.tolist()) for g in range(2)]
    rest = scores.clone()
    for g in range(2):
        rest[0, g, list(own[g])] = -torch.inf
    for flat in rest.flatten().topk(16).indices.tolist():
        own[flat // 30].add(flat % 30)
    assert kept == [sorted(head) for head in own]
    assert sum(map(len, kept)) == 20
    assert len(kept[0]) != len(kept[1])


@pytest.mark.parametrize("name", SCORED)
def test_head_budgets_over_each_policy(name: str) -> None:
    kind = catalog.get(name, "policy").load()
    inner = {"name": name, **kind.with_budget(10, 40)}
    driver = Driver("head_budgets", 40, base=inner, least=0.0)
    driver.k[:, 1] *= 4
    driver.feed(36)
    driver.feed()
    held = [len(head) for head in driver.held()]
    assert sum(held) in (20, 22), "two heads of 10, and the token decoded since the prompt's end"
    if "snapkv" in name:
        assert held[0] != held[1]


@pytest.mark.parametrize("name", SCORED)
def test_layer_budgets_over_each_policy(name: str) -> None:
    kind = catalog.get(name, "policy").load()
    model, ids = decoder("llama", num_hidden_layers=3), tokens(1, 40)
    inner = {"name": name, **kind.with_budget(12, 40)}
    sizes = []
    for spread in (0.5, -0.5):
        with plait.policy(model, "layer_budgets", base=inner, spread=spread) as applied:
            generate(model, {"input_ids": ids}, new=3)
            held = [applied.meter.bytes_held[layer] for layer in range(3)]
            sizes.append(held)
    assert sizes[0] == sizes[1][::-1]
    assert sizes[0][0] > sizes[0][1] > sizes[0][2]


def test_what_has_no_budget_is_refused() -> None:
    with pytest.raises(OptionError, match=r"'head_budgets'.*quest.*snapkv"):
        build("head_budgets", base="quest")
    with pytest.raises(OptionError, match="spread"):
        build("layer_budgets", spread=1.0)


@pytest.mark.parametrize("base", ["dense", "streaming", "h2o", "tova", "quest"])
def test_chunks_are_calls_of_their_own(base: str) -> None:
    """A prompt in one call equals the same prompt fed to the policy call by call."""
    options = catalog.get(base, "policy").load().with_budget(9, 40)
    whole = Driver("chunked", 40, rows=2, padding=[5, 0], base={"name": base, **options}, chunk=7)
    parts = Driver(base, 40, rows=2, padding=[5, 0], **options)
    parts.padding = torch.tensor([0, 0])  # chunks count from a row's first real token
    real = Driver(base, 40, **options)
    real.q, real.k, real.v = (x[1:] for x in (whole.q, whole.k, whole.v))
    found = whole.feed(30)
    expected = torch.cat([real.feed(n) for n in (7, 7, 7, 7, 2)], dim=2)
    torch.testing.assert_close(found[1:], expected)
    torch.testing.assert_close(whole.feed()[1:], real.feed())


def test_the_memory_stays_bounded_while_a_prompt_is_read() -> None:
    inner: dict[str, Any] = {"name": "h2o", "heavy": 4, "recent": 4}
    driver = Driver("chunked", 64, base=inner, chunk=8)
    driver.feed(64)
    dense = 64 * 65 // 2
    first = 8 * 9 // 2
    assert driver.work("prefill").pairs == 4 * (first + 7 * (first + 8 * 8)) < 4 * dense
