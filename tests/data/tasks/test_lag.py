"""Lag: the worked example, sizes that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from plait.data.tasks.lag import Lag
from plait.errors import DataError


class Rigged(np.random.Generator):
    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, low: int, high: int, size: tuple[int, int], dtype: type) -> np.ndarray:  # type: ignore[override]
        return np.array([[5, 2, 2, 7, 0, 3]], dtype=dtype)


@pytest.mark.parametrize(("lag", "expected"), [(1, [-100, 5, 2, 2, 7, 0]), (4, [-100] * 4 + [5, 2])])
def test_worked_example(lag: int, expected: list[int]) -> None:
    assert Lag(vocab_size=8, length=6, lag=lag).generate(Rigged(), 1)[1][0].tolist() == expected


def test_ids_are_uniform() -> None:
    inputs, _ = Lag(vocab_size=4, length=64).generate(np.random.default_rng(0), 256)
    assert np.bincount(inputs.ravel()) / inputs.size == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("options", [{"lag": 0}, {"length": 3, "lag": 3}, {"vocab_size": 1}])
def test_sizes_that_do_not_fit(options: dict[str, int]) -> None:
    with pytest.raises(DataError):
        Lag(**options)
