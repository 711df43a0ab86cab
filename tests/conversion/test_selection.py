"""Which layers stay: HALO's published sweep, tables of heads, plain lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from plait.conversion.selection import Selection, head_table, importance, most_important
from plait.errors import DataError, OptionError

# fmt: off
#: The sweep of HypeNet-2B, layers 0 to 27: commonsense and recall with that layer replaced (HALO's released logs).
COMMONSENSE = [
    .3108, .5548, .5804, .5839, .5756, .5799, .5784, .5753, .5828, .5802, .5722, .5727, .5768, .5782,
    .5784, .5794, .5791, .5725, .5757, .5776, .5708, .5768, .5709, .5775, .5776, .5769, .5779, .5794,
]
RECALL = [
    .6339, .7202, .6937, .7144, .7097, .7432, .6862, .7100, .7258, .6935, .7249, .6883, .6936, .7258,
    .7182, .7314, .7017, .7053, .7087, .6847, .7188, .6531, .7274, .7064, .6936, .6705, .7008, .7216,
]
# fmt: on


def test_published_selection() -> None:
    assert most_important(importance(RECALL, COMMONSENSE), 28 // 4) == [2, 3, 6, 8, 9, 21, 25]


def test_recall_alone_would_choose_otherwise() -> None:
    assert most_important([-r for r in RECALL], 7) == [0, 6, 9, 11, 19, 21, 25]


def test_importance_by_hand() -> None:
    """The best recall is layer 1's, the best language layer 0's; a layer that costs no language counts 50."""
    found = importance([0.5, 0.9, 0.7], [0.8, 0.6, 0.7])
    assert found == pytest.approx([50.0, 0.0, 2.0])


def test_equal_scores_prefer_the_earlier_layer() -> None:
    assert most_important([1.0, 2.0, 2.0, 2.0], 2) == [1, 2]


def test_ways_that_measure_nothing() -> None:
    assert Selection("every", "3:1").choose(8, 4) == [3, 7]
    assert Selection("importance", "pure").choose(8, 4) == []
    assert Selection("importance", "3:1", layers=[5, 1]).choose(8, 4) == [1, 5]
    assert not Selection("importance", "3:1", layers=[5, 1]).measured
    assert Selection("importance", "3:1").measured


def test_strongest_head_decides(tmp_path: Path) -> None:
    table = [[0.1, 0.1], [0.0, 0.9], [0.5, 0.5], [0.2, 0.6]]
    path = tmp_path / "heads.json"
    path.write_text(json.dumps({"scores": table}))
    assert Selection("heads", "1:1", scores=table).choose(4, 2) == [1, 3]
    assert Selection("heads", "1:1", scores=path).choose(4, 2) == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[1, 2]]", r"1 rows of 2 numbers, but the model has 2 layers of 2 heads"),
        ("[[1, 2], [1]]", r"2 rows of 1/2 numbers"),
        ('[["a", 2], [1, 2]]', r"rows of numbers"),
        ("[[1, 2", r"is not JSON"),
        ("{}", r"0 rows of no numbers"),
    ],
)
def test_tables_that_do_not_fit(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        head_table(path, 2, 2)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file .*none\.json"):
        head_table(tmp_path / "none.json", 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"way": "importanc"}, r"no selection 'importanc'. Did you mean 'importance'"),
        ({"way": "heads"}, r"needs a table"),
        ({"way": "every", "scores": [[1.0]]}, r"goes with the selection 'heads', not with 'every'"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Selection(**arguments)


def test_layers_that_do_not_exist() -> None:
    with pytest.raises(OptionError, match=r"indices run from 0 to 3"):
        Selection("every", layers=[4]).choose(4, 2)
