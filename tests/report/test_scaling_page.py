"""The page of a scaling study in headless Chromium."""

from pathlib import Path
from typing import Any

import pytest

from plait.report.scaling_page import write_page
from plait.study.scaling.summary import (
    ArchitectureResult,
    Comparison,
    EnvelopePoint,
    FittedLaw,
    ScalingSummary,
    SizeResult,
)


def _architecture(key: str, mixer: str, ratio: str) -> ArchitectureResult:
    curves = {"16": [(1e9, 3.0), (1e10, 2.5)], "32": [(3e9, 3.1), (3e10, 2.1)]}
    sizes = [
        SizeResult(size=size, layers=2, parameters=int(size) ** 2, flops_per_token=1e5, curve=curve, losses={0: 2.0})
        for size, curve in curves.items()
    ]
    envelope = [
        EnvelopePoint(flops=1e9, loss=3.0, parameters=256, tokens=1e4, size="16"),
        EnvelopePoint(flops=1e10, loss=2.5, parameters=256, tokens=1e5, size="16"),
        EnvelopePoint(flops=3e10, loss=2.1, parameters=1024, tokens=3e5, size="32"),
    ]
    laws = {
        name: FittedLaw(coefficient=value, exponent=slope, interval=(slope, slope), residual=0.01, largest=0.02)
        for name, value, slope in (("loss", 20, -0.09), ("parameters", 0.01, 0.5), ("tokens", 0.001, 0.7))
    }
    return ArchitectureResult(
        key=key, mixer=mixer, ratio=ratio, sizes=sizes, envelope=envelope, low=1e9, high=3e10, laws=laws
    )


@pytest.fixture
def summary() -> ScalingSummary:
    architectures = [
        _architecture("transformer", "attention", "full"),
        _architecture("gla pure", "gla", "pure"),
        _architecture("gla <3:1>", "gla", "3:1").model_copy(update={"laws": {}, "reason": "One size is the best."}),
    ]
    return ScalingSummary(
        name="small",
        description="Three architectures.",
        created="2026-03-02T14:05:00+00:00",
        command="plait study scaling small.yaml",
        training_seconds=61.0,
        versions={"plait": "0"},
        machine="none",
        architectures=architectures,
        comparison=Comparison(flops=2e10, losses={"transformer": 2.1, "gla pure": 2.0, "gla <3:1>": 2.0}),
        runs=6,
        finished=6,
        scaling={"name": "small"},
    )


def test_charts_are_drawn(browser: Any, summary: ScalingSummary, tmp_path: Path) -> None:
    browser.scheme("light")
    browser.width(1280)
    browser.open(write_page(summary, tmp_path))
    assert [entry for entry in browser.log() if entry["level"] in ("SEVERE", "WARNING")] == []
    drawn = browser.run(
        """return [...document.querySelectorAll("figure")].map((figure) => {
          const place = figure.querySelector(".chart");
          const traces = place.querySelectorAll(".main-svg .scatterlayer .trace").length;
          return [traces, place.data.length, (Plotly.validate(place.data, place.layout) || []).length];
        })"""
    )
    assert [wanted for _, wanted, _ in drawn] == [3 * 3 + 2, 3 + 2, 3 + 2]
    for traces, wanted, invalid in drawn:
        assert traces == wanted
        assert invalid == 0


def test_legend_hides_an_architecture(browser: Any, summary: ScalingSummary, tmp_path: Path) -> None:
    browser.open(write_page(summary, tmp_path))
    visible = """return document.querySelector('[data-chart="tokens"] .chart').data.filter((t) => t.visible).length"""
    before = browser.run(visible)
    browser.run("""document.querySelector('[data-chart="tokens"] button[data-value="gla"]').click()""")
    assert (before, browser.run(visible)) == (5, 2)
