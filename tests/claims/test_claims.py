"""The contract of claims, over the catalogue and on a toy claim."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plait import catalog
from plait.catalog import Method
from plait.claims import Claim, Evidence, Measurement, kept_evidence, load_claim, read_evidence, run_claim
from plait.claims.page import claims_table, page
from plait.drawing.lines import Line, LinesFigure, lines_svg
from plait.errors import CatalogError, StudyError
from plait.statistics.interval import Interval

NAMES = catalog.names("claim")


def value(mean: float, half: float = 0.1) -> dict[str, Any]:
    return Interval(mean=mean, low=mean - half, high=mean + half, n=3, over="seeds").model_dump()


class MoreIsBetter(Claim):
    """A toy claim: b lies above a."""

    sentence = "More is better."
    published = "a 1, b 2."
    experiment = ("Two numbers.", "No data.", "Compared: a and b.", "Measured: themselves.")
    rule = "Holds if the interval of b lies above that of a."
    change = "Other numbers."
    measured: ClassVar = {"a": value(1.0), "b": value(2.0)}

    def measure(self, folder: Path, announce: Any) -> Measurement:
        announce("measuring")
        return Measurement(
            self.measured, 90.0, [0, 1, 2], {"versions": {"torch": "2"}, "machine": "a machine", "commit": None}
        )

    def decide(self, data: dict[str, Any]) -> tuple[Any, str]:
        seen = f"a {data['a']['mean']}, b {data['b']['mean']}"
        if data["b"]["low"] > data["a"]["high"]:
            return "holds", seen
        return ("does not hold" if data["b"]["high"] < data["a"]["low"] else "inconclusive"), seen

    def figure(self, data: dict[str, Any]) -> LinesFigure:
        line = Line("seen", [Interval.model_validate(data[name]) for name in "ab"])
        return LinesFigure("Number", ["a", "b"], "which", [line], "Two numbers")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    method = Method("toy", "claim", f"{__name__}:MoreIsBetter", "More is better", "2000.00001")
    monkeypatch.setattr(Method, "load", lambda self: MoreIsBetter)
    monkeypatch.setattr(catalog, "get", lambda name, kind="mixer": method)
    return "toy"


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_says_all_that_its_page_needs(name: str) -> None:
    claim = load_claim(name)
    assert len(claim.experiment) == 4
    for text in (claim.sentence, claim.published, claim.rule, claim.change, *claim.experiment):
        assert text.strip().endswith((".", "!")), text


@pytest.mark.parametrize("name", NAMES)
def test_kept_evidence_gives_its_verdict_again(name: str) -> None:
    evidence, claim = kept_evidence(name), load_claim(name)
    if evidence is None:
        pytest.skip("has not been run")
    assert evidence.claim == name
    assert evidence.rule == claim.rule, "the rule has changed: run the claim again"
    assert (evidence.verdict, evidence.seen) == claim.decide(evidence.data)
    assert evidence.command == f"plait claim run {name}"
    assert evidence.seeds
    assert evidence.minutes > 0
    assert {"plait", "torch"} <= set(evidence.versions)
    ET.fromstring(lines_svg(claim.figure(evidence.data)))
    assert f"## Verdict: {evidence.verdict}" in page(claim, evidence, "figure.svg")


def test_changed_figures_change_the_verdict() -> None:
    """The study's claims are decided from the evidence's own numbers: recall that HGRN2 reaches turns (d)."""
    name = "gates_reach_the_transformer"
    evidence, claim = kept_evidence(name), load_claim(name)
    assert evidence is not None
    assert evidence.verdict == "does not hold"
    data = json.loads(json.dumps(evidence.data))
    for one in data["configurations"]:
        if one["ratio"] == "3:1" and one["mixer"] == "hgrn2":
            one["metrics"]["recall"] |= {"mean": 0.99, "low": 0.985, "high": 1.0}
        if one["ratio"] == "3:1" and one["mixer"] == "retnet":
            one["metrics"]["recall"] |= {"mean": 0.1, "low": 0.05, "high": 0.2}
    assert claim.decide(data)[0] == "holds"


def test_run_writes_evidence_figure_and_page(toy: str, tmp_path: Path) -> None:
    told: list[str] = []
    evidence = run_claim(toy, tmp_path / "work", told.append)
    assert told == ["measuring"]
    assert (evidence.verdict, evidence.minutes, evidence.seeds) == ("holds", 1.5, [0, 1, 2])
    assert read_evidence(tmp_path / "work" / "evidence.json") == evidence
    text = (tmp_path / "work" / "page.md").read_text()
    for part in ("More is better.", "a 1, b 2.", "4. Measured: themselves.", "## Verdict: holds", "(figure.svg)"):
        assert part in text
    ET.parse(tmp_path / "work" / "figure.svg")


def test_the_table_has_a_row_for_each_claim_run_or_not(toy: str) -> None:
    evidence = Evidence(
        claim=toy,
        verdict="inconclusive",
        seen="",
        rule="",
        data={},
        seeds=[4, 5],
        minutes=2.5,
        created="",
        command="",
        versions={},
        machine="",
    )
    rows = claims_table({toy: evidence}, "claims/{}.md").splitlines()
    assert rows[2].startswith("| [toy](claims/toy.md) | inconclusive | More is better. |")
    assert rows[2].endswith("| 2 | 2.5 | `plait claim run toy` |")
    assert claims_table({toy: None}).splitlines()[2].startswith("| `toy` | not run |")


def test_errors_say_what_and_how(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no claim named 'gates_reach'"):
        load_claim("gates_reach")
    with pytest.raises(StudyError, match="plait claim run NAME makes it"):
        read_evidence(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{"claim": "x"}')
    with pytest.raises(StudyError, match="not evidence of a claim"):
        read_evidence(tmp_path / "bad.json")


def test_a_figure_has_one_value_a_category_and_its_ends_in_sight() -> None:
    one = Interval(mean=0.5, low=0.4, high=0.7, n=3, over="seeds")
    figure = LinesFigure("x", ["a", "b"], "axis", [Line("first", [one, None]), Line("second", [one, one])], "label")
    text = lines_svg(figure)
    assert text.count('class="bar"') == 3
    assert text.count('class="line"') == 1, "a single value has no line"
    with pytest.raises(ValueError, match="1 values for 2 categories"):
        lines_svg(LinesFigure("x", ["a", "b"], "axis", [Line("first", [one])], "label"))
    with pytest.raises(ValueError, match="no value"):
        lines_svg(LinesFigure("x", ["a"], "axis", [Line("first", [None])], "label"))


def test_hostile_evidence_is_shown_as_it_is(toy: str, tmp_path: Path) -> None:
    evidence = run_claim(toy, tmp_path)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    names = {"seen": hostile, "machine": hostile, "created": hostile, "versions": {hostile: hostile}}
    text = page(MoreIsBetter(), evidence.model_copy(update={**names, "command": "```\n" + hostile}), "figure.svg")
    before, command, after = text.split("```")
    assert "<" not in before + after
    assert command.startswith("text\n")
    assert text.count("&lt;img src=x onerror=alert(1)&gt;") == 5


def test_no_link_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the documentation nor for a claim without a paper."""
    empty = re.compile(r"\]\(\s*\)|\]\(https://arxiv\.org/abs/\s*\)|href=\"\s*\"|\[\]\(")
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").rglob("*.md")]
    assert [path.name for path in pages if empty.search(path.read_text(encoding="utf-8"))] == []
    name = catalog.names("claim")[0]
    method = dataclasses.replace(catalog.get(name, "claim"), paper="")
    monkeypatch.setattr(catalog, "get", lambda *_: method)
    table = claims_table({name: None})
    assert "plait's own" in table
    assert not empty.search(table)
