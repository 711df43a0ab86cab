"""At their small settings the methods of the catalogue really drop pairs and bound their memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import plait
from contracts.checks import small_case, tiny_model, tokens
from plait import catalog
from plait.catalog import Method
from plait.models import PlaitCache, count_pairs
from plait.options import Options
from policies import tiny_models

#: Tokens of a text: within the 64 to 300 on which every mechanism shall act.
LENGTH = 64
DROPS = [*catalog.names("mixer", sparse=True), *catalog.names("mixer", state="bounded")]


def options_of(method: Method) -> type[Options]:
    """Of a task or recipe, the class is its own options."""
    target = method.load()
    return getattr(target, "Options", target)


@pytest.mark.parametrize(
    "method",
    [method for kind in ("mixer", "policy", "recipe", "task", "probe") for method in catalog.methods(kind)],
    ids=lambda method: f"{method.kind}-{method.name}",
)
def test_small_options_are_options(method: Method) -> None:
    kind = options_of(method)
    assert issubclass(kind, Options)
    small = kind.small()
    assert type(small) is kind
    assert kind.parse(method.name, dataclasses.asdict(small)) == small


@pytest.mark.parametrize("mixer", DROPS)
def test_mixers_drop_pairs(mixer: str) -> None:
    model = tiny_model(small_case(mixer))
    with torch.no_grad(), count_pairs(model) as pairs:
        model(tokens(1, LENGTH), use_cache=False)
    dense = tiny_model("attention")
    with torch.no_grad(), count_pairs(dense) as all_pairs:
        dense(tokens(1, LENGTH), use_cache=False)
    heads = [model.model.layers[0].attn.sizes[0], dense.model.layers[0].attn.sizes[0]]
    assert 0 < pairs[0] / heads[0] < 0.5 * all_pairs[0] / heads[1]


@pytest.mark.parametrize("mixer", [name for name in catalog.names("mixer") if not catalog.get(name).has(state="grows")])
def test_memory_ends_at_its_bound(mixer: str) -> None:
    model, held = tiny_model(small_case(mixer)), []
    for length in (LENGTH, 2 * LENGTH):
        cache = PlaitCache(model.config)
        with torch.no_grad():
            model(tokens(1, length), past_key_values=cache)
        held.append(cache.bytes())
    assert held[0] == held[1]


@pytest.mark.parametrize("name", catalog.names("policy", full=False))
def test_policies_drop_pairs_in_the_phases_that_they_reduce(name: str) -> None:
    model, ids = tiny_models.decoder("llama"), tiny_models.tokens(1, LENGTH + 6)
    policy = catalog.get(name, "policy").load()
    with torch.no_grad(), plait.policy(model, name, **dataclasses.asdict(policy.Options.small())) as applied:
        cache = None
        for part in ids.split([LENGTH, *[1] * 6], dim=1):
            cache = model(part, past_key_values=cache, use_cache=True).past_key_values
    report = applied.report()
    assert policy.reduces or catalog.get(name, "policy").combines
    for phase in policy.reduces or ("prefill", "decode"):
        work = getattr(report, phase)
        assert 0 < int(work.pairs) < int(work.dense_pairs), phase
