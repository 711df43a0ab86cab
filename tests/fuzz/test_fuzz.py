"""Thousands of damaged files: each ends in a result or in one sentence, never in a traceback, and never hangs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzz import cases
from fuzz.damage import damaged_bytes, damaged_yaml

Case = Callable[[Random, Path], list[str]]

#: Cases of each kind: in every run of the tests, and in the long one.
SHORT = {cases.run_file: 30, cases.model_config: 16, cases.stranger_file: 16}
LONG = {cases.run_file: 2000, cases.model_config: 300, cases.stranger_file: 300}
_BLOCK = 50


@pytest.fixture(autouse=True)
def _own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logs and caches go below ``tmp_path``; a training ends before its first step."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def stop(trainer: Any, checkpoint: Path | None) -> None:
        assert checkpoint is None

    monkeypatch.setattr("plait.training.trainer.PlaitTrainer.run", stop)


@pytest.mark.parametrize("case", SHORT)
def test_a_few_damaged_files(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cases.faults(case, range(SHORT[case]), tmp_path, capsys)
    assert not found, "\n".join(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "start"), [(case, start) for case, count in LONG.items() for start in range(0, count, _BLOCK)]
)
def test_many_damaged_files(case: Case, start: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = cases.faults(case, range(start, start + _BLOCK), tmp_path, capsys)
    assert not found, "\n".join(found)


def test_the_fuzzer_sees_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """An error that is not plait's, a message without end and a case that hangs are each found."""

    def broken(kind: str | None = None) -> list:
        raise errors.pop()

    def listing(rng: Random, folder: Path) -> list[str]:
        return ["list"]

    from plait.errors import PlaitError

    errors: list[BaseException] = [ZeroDivisionError("x"), cases.Hang(), PlaitError("fine")]
    monkeypatch.setattr("plait.catalog.methods", broken)
    found = cases.faults(listing, range(3), tmp_path, capsys)
    assert [one.partition(" ")[0] for one in found] == ["1:", "2:"]
    assert "hangs" in found[0]
    assert "ZeroDivisionError" in found[1]


def test_damage_follows_its_seed() -> None:
    one, other = (damaged_yaml(cases.RUN, Random("seed")) for _ in range(2))
    assert one == other
    content = os.urandom(100)
    assert damaged_bytes(content, Random(3)) == damaged_bytes(content, Random(3))
