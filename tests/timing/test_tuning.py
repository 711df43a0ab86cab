"""Few settings of a Triton kernel are tried, spread over its list, and all again afterwards."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from plait.timing.tuning import few_settings, spread


class Autotuner:
    """As Triton's: prunes its settings, times what is left."""

    def prune_configs(self, arguments: dict[str, Any]) -> list[int]:
        return list(range(10))

    def _bench(self, *arguments: object, config: int, **named: object) -> list[float]:
        return [float(config)] * 3


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Autotuner:
    for name in ("triton", "triton.runtime", "triton.runtime.autotuner"):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["triton.runtime.autotuner"], "Autotuner", Autotuner, raising=False)
    return Autotuner()


def test_settings_are_spread_over_the_list(triton: Autotuner) -> None:
    with few_settings(3):
        assert triton.prune_configs({}) == [0, 3, 6]
        assert triton._bench(config=6) == [6.0] * 3
    assert triton.prune_configs({}) == list(range(10))


def test_one_setting_is_not_timed(triton: Autotuner) -> None:
    with few_settings(1):
        assert triton.prune_configs({}) == [0]
        assert triton._bench(config=6) == [0.0] * 3
    assert triton._bench(config=6) == [6.0] * 3


def test_all_settings_without_a_number(triton: Autotuner) -> None:
    with few_settings(None):
        assert triton.prune_configs({}) == list(range(10))


@pytest.mark.parametrize(("most", "expected"), [(2, [0, 2]), (5, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4])])
def test_spread(most: int, expected: list[int]) -> None:
    assert spread(list(range(5)), most) == expected
