"""Oracles 3 and 6 of 2507.06457's card, and 11 of the linear mixers' card: parameters and FLOPs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from plait.models import PlaitCache, PlaitConfig, count_parameters, layer_costs, layer_plan, plan_cost

GDN = {"gated_deltanet": {"head_dim": 256}}
DELTANET = {"deltanet": {"head_dim": 128}}


def published(
    hidden_size: int, mixer: str, mixers: dict[str, dict[str, Any]], full: list[int] | None = None
) -> PlaitConfig:
    plan = layer_plan(mixer, full or "pure", 24)
    return PlaitConfig(vocab_size=32000, hidden_size=hidden_size, layer_types=plan, mixers=mixers)


@pytest.mark.parametrize(
    ("mixer", "small_options", "large_options", "small", "large"),
    [
        (
            "gated_deltanet",
            {"num_heads": 4, "head_dim": 256},
            {"num_heads": 8, "head_dim": 256},
            399_531_200,
            1_466_343_808,
        ),
        ("deltanet", {"num_heads": 8}, {"num_heads": 16}, 374_362_112, 1_365_677_056),
        ("gla", {"num_heads": 4}, {"num_heads": 4}, 374_475_776, 1_365_514_240),
        ("hgrn", {}, {}, 373_916_672, 1_364_396_032),
        ("hgrn2", {"expand_ratio": 128}, {"expand_ratio": 128}, 373_916_672, 1_364_396_032),
        ("attention", {"num_heads": 16}, {"num_heads": 32}, 373_867_520, 1_364_297_728),
    ],
)
def test_parameters_of_published_models(
    mixer: str, small_options: dict, large_options: dict, small: int, large: int
) -> None:
    assert count_parameters(published(1024, mixer, {mixer: small_options})) == small
    assert count_parameters(published(2048, mixer, {mixer: large_options})) == large


@pytest.mark.parametrize(
    ("ratio", "parameters"),
    [("24:1", 1_462_091_888), ("12:1", 1_457_839_968), ("6:1", 1_449_336_128), ("3:1", 1_432_328_448)],
)
def test_parameters_of_published_hybrids(ratio: str, parameters: int) -> None:
    plan = layer_plan("gated_deltanet", ratio, 24, "period_r")
    mixers = {"gated_deltanet": {"num_heads": 8, "head_dim": 256}, "attention": {"num_heads": 32}}
    config = PlaitConfig(vocab_size=32000, hidden_size=2048, layer_types=plan, mixers=mixers)
    assert count_parameters(config) == parameters


def test_tied_head_counts_once() -> None:
    untied, tied = (PlaitConfig(layer_types=["attention"], tie_word_embeddings=tied) for tied in (False, True))
    assert count_parameters(untied) - count_parameters(tied) == 256 * 128


CHECK_VALUES = [  # d 2048, 24 layers, one sequence
    ("attention", {"num_heads": 32}, "pure", {4096: 1.649e12, 32768: 1.056e14}),
    ("hgrn", {}, "pure", {4096: 1.007e9, 32768: 8.05e9}),
    ("gated_deltanet", {"num_heads": 8, "head_dim": 256}, "pure", {4096: 4.123e11, 32768: 3.299e12}),
    ("gated_deltanet", {"num_heads": 8, "head_dim": 256}, "3:1", {4096: 8.246e11, 32768: 3.738e13}),
]


@pytest.mark.parametrize(("mixer", "options", "ratio", "values"), CHECK_VALUES)
def test_flops(mixer: str, options: dict, ratio: str, values: dict[int, float]) -> None:
    plan = layer_plan(mixer, ratio, 24, "period_r")
    config = PlaitConfig(hidden_size=2048, layer_types=plan, mixers={mixer: options})
    for length, flops in values.items():
        digits = 3 if flops == 8.05e9 else 4  # as printed
        assert f"{plan_cost(config, length).flops_prefill:.{digits - 1}e}" == f"{flops:.{digits - 1}e}"


def test_softmax_costs_as_much_as_gated_deltanet_at_1024() -> None:
    attention = PlaitConfig(hidden_size=2048, layer_types=["attention"])
    linear = PlaitConfig(
        hidden_size=2048, layer_types=["gated_deltanet"], mixers={"gated_deltanet": {"num_heads": 8, "head_dim": 256}}
    )
    assert plan_cost(attention, 1024).flops_prefill == plan_cost(linear, 1024).flops_prefill
    assert plan_cost(attention, 1025).flops_prefill > plan_cost(linear, 1025).flops_prefill


@pytest.mark.parametrize(
    ("ratio", "mebibytes"), [("full", 768), ("3:1", 256), ("6:1", 128), ("12:1", 64), ("24:1", 32)]
)
def test_key_value_bytes(ratio: str, mebibytes: int) -> None:
    plan = layer_plan("gated_deltanet", ratio, 24, "period_r")
    mixers = {"gated_deltanet": {"num_heads": 8, "head_dim": 256}, "attention": {"num_heads": 32}}
    rows = layer_costs(PlaitConfig(hidden_size=2048, layer_types=plan, mixers=mixers), 4096)
    assert sum(row.cost.state_bytes for row in rows if row.state == "grows") == mebibytes * 2**20


def test_table_adds_up() -> None:
    config = PlaitConfig(
        hidden_size=32,
        layer_types=["hgrn2", "local", "attention"],
        mixers={"local": {"mixer": "attention", "window": 4}},
    )
    rows = layer_costs(config, 50)
    assert [(row.index, row.name, row.mixer, row.state) for row in rows] == [
        (0, "hgrn2", "hgrn2", "constant"),
        (1, "local", "attention", "bounded"),
        (2, "attention", "attention", "grows"),
    ]
    assert sum(row.cost.state_bytes for row in rows) == plan_cost(config, 50).state_bytes
    outside = 2 * 256 * 32 + 32 + 3 * 32  # embeddings, head, last norm, lower bounds
    assert sum(row.parameters for row in rows) + outside == count_parameters(config)


def test_bytes_are_those_allocated(build, tokens) -> None:
    """Oracle 5: only full layers grow, by exactly 2 T N D bytes each."""
    model = build("gated_deltanet", "attention", "gated_deltanet", "attention", dtype=torch.float32)
    sizes = {}
    for length in (11, 22):
        cache = PlaitCache(model.config)
        model(tokens(1, length), past_key_values=cache)
        sizes[length] = [layer.state.bytes() for layer in cache.layers]
        assert cache.bytes() == plan_cost(model.config, length, cache_dtype=torch.float32).state_bytes
    growth = [after - before for before, after in zip(sizes[11], sizes[22], strict=True)]
    assert growth == [0, 2 * 11 * 16 * 4, 0, 2 * 11 * 16 * 4]


def test_a_full_layer_sees_every_earlier_token() -> None:
    """One definition for every mixer: the catalogue's tag, and no window among the options."""
    config = PlaitConfig(
        hidden_size=64,
        layer_types=["attention", "near", "mla", "gla", "lizard"],
        mixers={"near": {"mixer": "attention", "window": 8}},
    )
    rows = layer_costs(config, 40)
    assert [row.full for row in rows] == [True, False, True, False, False]
    assert [row.state for row in rows] == ["grows", "bounded", "grows", "constant", "bounded"]
