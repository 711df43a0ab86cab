"""Scores of needles in haystacks, and softmax attention as going through a book."""

from typing import Any

import numpy as np
import pytest
import torch

from plait.errors import DataError, OptionError
from plait.study.scaling.book import book_attention
from plait.study.scaling.retrieval import continuity, niah_score, weighted_niah

GRID = np.asarray([[1.0, 0.5, 0.0], [0.8, 0.6, 0.1]])


def test_weight_one_is_the_mean() -> None:
    assert weighted_niah(GRID) == pytest.approx(0.5)


def test_weights_worked_by_hand() -> None:
    """Depth 2 counts 3 times depth 1, context 2 twice context 1: (1 * .4 + 2 * .2 + 3 * 1 + 6 * .5) / 12."""
    assert weighted_niah([[0.4, 0.2], [1.0, 0.5]], depth_base=3, context_base=2) == pytest.approx(6.8 / 12)


def test_larger_bases_move_towards_deep_and_long_cells() -> None:
    corner = np.zeros((4, 3))
    corner[-1, -1] = 1.0
    values = [weighted_niah(corner, base, base) for base in (1.0, 1.5, 4.0)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1 / 12)
    assert values[-1] > 0.5
    assert weighted_niah(corner, 2.0, 1.0) != weighted_niah(corner, 1.0, 2.0)


def test_score_of_all_and_of_nothing() -> None:
    assert niah_score(np.ones((5, 3)), depth_base=1.3, context_base=1.2) == pytest.approx(1.0)
    assert niah_score(np.zeros((5, 3))) == 0.0


@pytest.mark.parametrize(
    ("column", "factor"),
    [
        ([1, 0, 1, 0], 2**-1.5),
        ([1, 1, 0, 0], 2**-0.5),
        ([0, 1, 0], 2**-1.0),
        ([1, 1, 1, 1], 1.0),
        ([0, 0, 0, 0], 0.0),
    ],
)
def test_continuity(column: list[int], factor: float) -> None:
    assert continuity(column) == pytest.approx(factor)


def test_score_multiplies_each_context_by_its_continuity() -> None:
    """Contexts 1, 0, 1, 0 (mean 0.5, factor 2^-1.5) and all ones."""
    scores = np.asarray([[1, 1], [0, 1], [1, 1], [0, 1]], dtype=float)
    assert niah_score(scores) == pytest.approx((0.5 * 2**-1.5 + 1) / 2)
    assert niah_score(scores, context_base=3.0) == pytest.approx((0.5 * 2**-1.5 + 3) / 4)


def test_the_threshold_belongs_to_success() -> None:
    assert niah_score([[0.7], [0.7]], threshold=0.7) == pytest.approx(0.7)
    assert niah_score([[0.7], [0.7]], threshold=0.71) == 0.0


def test_wrong_grids_and_options() -> None:
    wrong: list[Any] = [[0.1, 0.2], [[1.5]], [[float("nan")]], [[]]]
    for grid in wrong:
        with pytest.raises(DataError, match="grid"):
            weighted_niah(grid)
    with pytest.raises(OptionError, match=r"depth_base = 0\.9"):
        weighted_niah(GRID, depth_base=0.9)
    with pytest.raises(OptionError, match="threshold = 0"):
        niah_score(GRID, threshold=0)


def test_going_through_the_book_is_softmax_attention_at_quadratic_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    T, K, V = 9, 4, 3
    q, k = (torch.randn(T, K, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(T, V, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    found, steps = book_attention(q, k, v)
    torch.testing.assert_close(found, expected, atol=1e-15, rtol=1e-14)
    assert steps == 9 * 10 / 2
