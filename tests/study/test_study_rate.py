"""The rate of this machine: measured once, by the plan's own accounting."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plait.models.architecture import Architecture
from plait.runs.config import DataSection, ModelSection, RunConfig
from plait.study import rate
from plait.study.rate import BATCH, LENGTH, VOCABULARY, step_flops, this_machine


def test_a_rate_is_measured_once_for_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "STEPS", 1)
    first = this_machine(tmp_path)
    assert 1e6 < first.peak < 1e16
    assert first.memory > 2**28
    assert "measured on" in first.source
    monkeypatch.setattr(rate, "measure", None)
    assert this_machine(tmp_path) == first
    monkeypatch.setattr(rate, "fingerprint", lambda: "another machine")
    with pytest.raises(TypeError):  # it would be measured anew
        this_machine(tmp_path)


def test_flops_of_the_tiny_step_are_counted_as_a_plan_counts_them() -> None:
    """6 a token and parameter without the input embedding, and three times the mixing of each sequence."""
    run = RunConfig(
        model=ModelSection(hidden_size=64, num_hidden_layers=2, ratio="full"), data=DataSection(task="mqar")
    )
    one = Architecture.of(run, VOCABULARY)
    per_layer = 2 * LENGTH**2 * 64
    expected = 6 * (one.parameters() - VOCABULARY * 64) * BATCH * LENGTH + 3 * 2 * per_layer * BATCH
    assert step_flops(one) == expected


def test_measuring_leaves_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate, "STEPS", 1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    rate.measure(torch.device("cpu"), "here")
    assert torch.equal(torch.get_rng_state(), before)
