"""Names of runs, models and studies are text on every kind of page: they make no element and no attribute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plait.drawing.heat import heat_svg
from plait.drawing.lines import Line, LinesFigure, lines_svg
from plait.drawing.panels import panels_svg
from plait.evaluation.frontier import Point
from plait.report import frontier, page, scaling_page
from plait.report.figures_page import write_figures_page
from plait.statistics.interval import Interval
from plait.study.scaling.summary import ScalingSummary
from plait.study.summary import StudySummary

HOSTILE = """"'></title></script><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}%{x}"""
HARMLESS = "name"


class Elements(HTMLParser):
    """How often each element and attribute stands on a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.update([tag, *(f"{tag} {name}" for name, _ in attrs)])

    def handle_data(self, data: str) -> None:
        self.text += data


def replaced(value: Any, name: str) -> Any:
    """``value`` with every ``@`` in every text replaced by ``name``."""
    if isinstance(value, str):
        return value.replace("@", name)
    if isinstance(value, list):
        return [replaced(one, name) for one in value]
    if isinstance(value, dict):
        return {replaced(key, name): replaced(one, name) for key, one in value.items()}
    return value


def study_page(name: str, full: StudySummary) -> str:
    """Every text that a study's file, its trials or a claim can bring."""
    content = full.model_dump(mode="json")
    content |= {"name": "@", "description": "@", "command": "@", "machine": "@", "commit": "@", "versions": {"@": "@"}}
    content |= {"study": {"@": ["@"]}, "recommendation": {"key": "@", "sentences": ["@"]}, "tracks": {"lm": "@"}}
    content["configurations"][-1] |= {"key": "@", "mixer": "@", "ratio": "@", "placement": "@", "fields": {"@": "@"}}
    for text in ("name", "title", "sentence", "published", "rule", "seen"):
        content["claims"][0][text] = "@"
    content["guards"].append(
        {**content["guards"][0], "track": "@", "message": "@", "learnt": False, "metric": "task:@"}
    )
    content["failed"][0] |= {"key": "@", "track": "@", "error": "@", "log": "@", "trial": "@"}
    return page.render(StudySummary.model_validate(replaced(content, name)))


def scaling(name: str, _: StudySummary) -> str:
    law = {"coefficient": 1, "exponent": -0.1, "interval": (-0.2, 0), "residual": 0.01, "largest": 0.02}
    point = {"flops": 1e9, "loss": 3.0, "parameters": 256, "tokens": 1e4, "size": "@"}
    size = {"size": "@", "layers": 2, "parameters": 256, "flops_per_token": 1e5, "curve": [(1e9, 3.0), (1e10, 2.5)]}
    architecture = {
        "key": "@",
        "mixer": "@",
        "ratio": "@",
        "sizes": [{**size, "losses": {0: 2.0}}],
        "envelope": [point, {**point, "flops": 1e10, "loss": 2.5}],
        "low": 1e9,
        "high": 1e10,
        "laws": {"loss": law, "parameters": law, "tokens": law},
        "reason": "@",
    }
    texts = dict.fromkeys(("name", "description", "command", "machine", "commit"), "@")
    content = {
        **texts,
        "created": "2026-03-02T14:05:00+00:00",
        "training_seconds": 61.0,
        "versions": {"@": "@"},
        "architectures": [architecture],
        "comparison": {"flops": 2e9, "losses": {"@": 2.0}},
        "runs": 1,
        "finished": 1,
        "scaling": {"@": "@"},
    }
    return scaling_page.render(ScalingSummary.model_validate(replaced(content, name)))


def figures(name: str, _: StudySummary, folder: Path) -> str:
    """The page of a frontier, with its figures."""
    points = [Point(name, budget, name, 0.5, 0.4, 0.6, "none", budget, budget, budget, {}) for budget in (0.5, 1.0)]
    svgs = [panels_svg(figure) for figure in frontier.figures(points)]
    made = write_figures_page(folder / "p.html", name, name, svgs, ([name], [[name]]), f"plait frontier {name}")
    return made.read_text(encoding="utf-8")


def drawings(name: str, _: StudySummary) -> str:
    """The figures that probes, claims and tasks leave as files."""
    line = Line(name, [Interval(mean=0.5, low=0.4, high=0.6, n=2, over="seeds")])
    lines = LinesFigure(name, [name], name, [line], name, (0.0, 1.0))
    return lines_svg(lines) + heat_svg([[0.5]], name, rows=name, columns=name, high=1.0)


@pytest.fixture(params=["study", "scaling", "frontier", "drawings"])
def rendered(request: pytest.FixtureRequest, full_summary: StudySummary, tmp_path: Path) -> Callable[[str], str]:
    """A page as text, with a name in every place that takes one."""
    kinds: dict[str, Callable[[str], str]] = {
        "study": lambda name: study_page(name, full_summary),
        "scaling": lambda name: scaling(name, full_summary),
        "frontier": lambda name: figures(name, full_summary, tmp_path),
        "drawings": lambda name: drawings(name, full_summary),
    }
    return kinds[request.param]


def test_a_name_is_text(rendered: Callable[[str], str]) -> None:
    hostile, harmless = Elements(rendered(HOSTILE)), Elements(rendered(HARMLESS))
    assert hostile.found == harmless.found
    assert HOSTILE in hostile.text
