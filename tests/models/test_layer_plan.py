"""Oracle 1 of 2507.06457's card: both placements give exactly the published lists."""

from __future__ import annotations

import pytest

from plait.errors import OptionError
from plait.models import full_layers, layer_plan

TABLE = [
    ("block_r_plus_1", "12:1", 24, [12]),
    ("block_r_plus_1", "6:1", 24, [6, 13, 20]),
    ("block_r_plus_1", "3:1", 24, [3, 7, 11, 15, 19, 23]),
    ("block_r_plus_1", "24:1", 25, [24]),
    ("block_r_plus_1", "12:1", 26, [12, 25]),
    ("block_r_plus_1", "1:1", 6, [1, 3, 5]),
    ("block_r_plus_1", "3:1", 12, [3, 7, 11]),
    ("block_r_plus_1", "24:1", 48, [24]),
    ("block_r_plus_1", "12:1", 48, [12, 25, 38]),
    ("period_r", "24:1", 24, [23]),
    ("period_r", "12:1", 24, [11, 23]),
    ("period_r", "6:1", 24, [5, 11, 17, 23]),
    ("period_r", "3:1", 24, [2, 5, 8, 11, 14, 17, 20, 23]),
    ("period_r", "12:1", 12, [11]),
    ("period_r", "24:1", 48, [23, 47]),
]


@pytest.mark.parametrize(("placement", "ratio", "layers", "expected"), TABLE)
def test_placements(placement: str, ratio: str, layers: int, expected: list[int]) -> None:
    assert full_layers(ratio, layers, placement) == expected
    plan = layer_plan("gla", ratio, layers, placement)
    assert [index for index, name in enumerate(plan) if name == "attention"] == expected
    assert plan.count("gla") == layers - len(expected)


@pytest.mark.parametrize("placement", ["block_r_plus_1", "period_r"])
def test_extremes(placement: str) -> None:
    assert full_layers("pure", 5, placement) == []
    assert full_layers("full", 5, placement) == [0, 1, 2, 3, 4]


def test_explicit_list_and_other_full_mixer() -> None:
    assert layer_plan("hgrn2", [3, 0], 4, full="window") == ["window", "hgrn2", "hgrn2", "window"]


@pytest.mark.parametrize(
    ("ratio", "layers", "placement", "message"),
    [
        ("24:1", 24, "block_r_plus_1", "needs 25 layers"),
        ("25:1", 24, "period_r", "needs 25 layers"),
        ("1:1", 4, "period_r", "transformer"),
        ("3-1", 24, "period_r", "'R:1'"),
        ("0:1", 24, "period_r", "'R:1'"),
        ("3:1", 24, "period", "Did you mean 'period_r'"),
        ([1, 1], 4, "period_r", "twice"),
        ([-1], 4, "period_r", "from 0 to 3"),
        ([4], 4, "period_r", "from 0 to 3"),
        ([True], 4, "period_r", "not an integer"),
    ],
)
def test_errors(ratio: str | list[int], layers: int, placement: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        full_layers(ratio, layers, placement)
