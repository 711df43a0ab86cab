"""Options: defaults fit the published models and small ones; each wrong value says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from plait import catalog
from plait.errors import OptionError
from plait.mixers import Dims
from plait.mixers.linear import Heads
from plait.options import Options


def options(mixer: str, **values: Any) -> Options:
    return catalog.get(mixer).load().Options.parse(mixer, values)


@pytest.mark.parametrize(
    ("mixer", "at_1024", "at_2048", "at_64"),
    [
        ("attention", (16, 16, 64), (32, 32, 64), (2, 2, 32)),
        ("gated_deltanet", Heads(4, 4, 256, 256), Heads(8, 8, 256, 256), Heads(2, 2, 32, 32)),
        ("kda", Heads(8, 8, 128, 128), Heads(16, 16, 128, 128), Heads(2, 2, 32, 32)),
        ("deltanet", Heads(8, 8, 128, 128), Heads(16, 16, 128, 128), Heads(2, 2, 32, 32)),
        ("gla", Heads(4, 4, 128, 256), Heads(4, 4, 256, 512), Heads(4, 4, 8, 16)),
        ("hgrn2", Heads(8, 8, 128, 128), Heads(16, 16, 128, 128), Heads(2, 2, 32, 32)),
        ("hgrn", Heads(1024, 1024, 1, 1), Heads(2048, 2048, 1, 1), Heads(64, 64, 1, 1)),
        ("retnet", Heads(8, 8, 128, 256), Heads(8, 8, 256, 512), Heads(8, 8, 8, 16)),
    ],
)
def test_default_heads(mixer: str, at_1024: Any, at_2048: Any, at_64: Any) -> None:
    default = options(mixer)
    assert default.heads(Dims(1024)) == at_1024
    assert default.heads(Dims(2048)) == at_2048
    assert default.heads(Dims(64)) == at_64


@pytest.mark.parametrize("hidden_size", [96, 160, 200, 300])
@pytest.mark.parametrize("mixer", ["attention", "gated_deltanet", "deltanet", "hgrn2"])
def test_default_heads_divide_odd_widths(mixer: str, hidden_size: int) -> None:
    heads = options(mixer).heads(Dims(hidden_size))
    count, size = (heads[0], heads[2]) if mixer == "attention" else (heads.keys, heads.K)
    assert count * size == hidden_size


@pytest.mark.parametrize(
    ("mixer", "elements"),
    [
        ("hgrn", 2048),
        ("hgrn2", 262144),
        ("deltanet", 262144),
        ("gla", 524288),
        ("gated_deltanet", 524288),
        ("kda", 262144),
        ("retnet", 1048576),
    ],
)
def test_states_at_2048_are_those_of_the_published_models(mixer: str, elements: int) -> None:
    assert options(mixer).heads(Dims(2048)).state_size == elements


@pytest.mark.parametrize(
    ("mixer", "values", "message"),
    [
        ("gated_deltanet", {"heads": 4}, r"no option 'heads'.*num_heads"),
        ("gla", {"num_heads": "4"}, r"'gla', option num_heads='4': .*integer"),
        ("gla", {"num_heads": 4.0}, r"num_heads=4.0"),
        ("gla", {"use_output_gate": 1}, r"use_output_gate=1"),
        ("gla", {"expand_k": 0}, r"expand_k=0.0: must be above 0"),
        ("gla", {"num_heads": 4, "num_kv_heads": 3}, r"num_kv_heads=3: must divide num_heads 4"),
        ("gla", {"clamp_min": 0.5}, r"clamp_min=0.5"),
        ("gla", {"gate_low_rank_dim": 0}, r"gate_low_rank_dim=0"),
        ("retnet", {"rope_base": -1.0}, r"rope_base=-1.0"),
        ("deltanet", {"qk_norm": "l1"}, r"qk_norm='l1'"),
        ("deltanet", {"qk_activation": "gelu"}, r"qk_activation='gelu'"),
        ("deltanet", {"conv_size": 0}, r"conv_size=0: must be above 0"),
        ("hgrn", {"expand_ratio": -1}, r"expand_ratio=-1"),
        ("hgrn2", {"num_heads": 0}, r"num_heads=0"),
        ("gated_deltanet", {"norm_eps": 0.0}, r"norm_eps=0.0: must be above 0"),
        ("kda", {"lower_bound": 5.0}, r"lower_bound=5.0: bounds a log decay"),
        ("attention", {"partial_rotary_factor": 1.5}, r"partial_rotary_factor=1.5: is a share"),
        ("attention", {"window": 0}, r"window=0"),
        ("attention", {"num_heads": -2}, r"num_heads=-2"),
    ],
    ids=str,
)
def test_wrong_values(mixer: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        options(mixer, **values)
    assert repr(mixer) in str(error.value)


@pytest.mark.parametrize(
    ("mixer", "values", "message"),
    [
        ("gated_deltanet", {"head_dim": 256}, r"head_dim=256: does not divide hidden_size 60; set num_heads"),
        ("gated_deltanet", {"num_heads": 7}, r"num_heads=7: does not divide hidden_size 60; set head_dim"),
        ("gated_deltanet", {"num_heads": 2, "num_v_heads": 3}, r"num_v_heads=3: must be a multiple of num_heads 2"),
        ("gated_deltanet", {"num_heads": 4, "expand_v": 0.3}, r"expand_v=0.3"),
        ("attention", {"head_dim": 6, "partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5: rotates 3 of the 6"),
        ("deltanet", {"num_heads": 7}, r"expand_k=1.0: hidden_size 60 .* 7 heads"),
        ("gla", {"num_heads": 8}, r"expand_k=0.5: .* is 30, which 8 heads"),
        ("retnet", {"num_heads": 4}, r"num_heads=4: rotary pairs need an even head dim, not 15"),
        ("hgrn2", {"expand_ratio": 128}, r"expand_ratio=128: does not divide hidden_size 60"),
        ("hgrn2", {"num_heads": 7}, r"num_heads=7: must divide"),
        ("attention", {"num_heads": 7}, r"num_heads=7: does not divide hidden_size 60; set head_dim"),
        ("attention", {"head_dim": 64}, r"head_dim=64: does not divide hidden_size 60; set num_heads"),
        ("attention", {"num_heads": 6, "num_kv_heads": 4}, r"num_kv_heads=4: must divide num_heads 6"),
        ("attention", {"num_heads": 4}, r"even head dim, not 15"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_the_width(mixer: str, values: dict[str, Any], message: str) -> None:
    parsed = options(mixer, **values)
    with pytest.raises(OptionError, match=message):
        catalog.get(mixer).load()(Dims(60), parsed, 0)


def test_options_built_directly_are_checked_too() -> None:
    with pytest.raises(OptionError, match="num_heads=0"):
        catalog.get("gla").load().Options(num_heads=0)


def test_whole_numbers_serve_as_fractions() -> None:
    assert options("gated_deltanet", expand_v=2, num_heads=2).heads(Dims(64)) == Heads(2, 2, 32, 64)
