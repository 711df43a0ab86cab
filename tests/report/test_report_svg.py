import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from plait.errors import StudyError
from plait.report import metric_svg, write_metric_svg
from plait.study.summary import StudySummary

SVG = "{http://www.w3.org/2000/svg}"


def test_recall_against_ratio(full_summary: StudySummary, tmp_path: Path) -> None:
    path = write_metric_svg(full_summary, tmp_path / "docs" / "recall.svg")
    root = ElementTree.parse(path).getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    for text in ("Recall, mean accuracy", "pure", "7:1", "3:1", "1:1", "full", "Gated DeltaNet", "Transformer"):
        assert text in texts
    groups = [group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}path[@class='line']") is not None]
    assert len(groups) == 6
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.attrib["x"]) < width
        assert 0 <= float(text.attrib["y"]) <= height
    style = root.find(f"{SVG}style")
    assert style is not None
    assert "prefers-color-scheme:dark" in (style.text or "")


def test_heights_follow_the_values(full_summary: StudySummary) -> None:
    root = ElementTree.fromstring(metric_svg(full_summary, "recall"))
    ticks = {text.text: float(text.attrib["y"]) - 4 for text in root.iter(f"{SVG}text") if text.get("class") == "tick"}
    zero, one = ticks["0.00"], ticks["1.00"]
    band = root.find(f"{SVG}rect[@class='band']")
    assert band is not None
    transformer = next(each for each in full_summary.configurations if each.ratio == "full").metrics["recall"]
    assert float(band.attrib["y"]) == pytest.approx(zero + (one - zero) * transformer.high, abs=0.1)
    lines = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.get("class") == "line"]
    retnet = [float(point.split()[1]) for point in lines[0][1:].split("L")]
    values = [each.metrics["recall"].mean for each in full_summary.configurations if each.mixer == "retnet"]
    assert retnet == pytest.approx([zero + (one - zero) * value for value in values], abs=0.1)


@pytest.mark.parametrize("metric", ["bits_per_byte", "loss", "decode@4096", "recall@64x4"])
def test_other_metrics(full_summary: StudySummary, metric: str) -> None:
    root = ElementTree.fromstring(metric_svg(full_summary, metric))
    ticks = [
        text.text
        for text in root.iter(f"{SVG}text")
        if text.get("class") == "tick" and text.get("text-anchor") == "end"
    ]
    assert 3 <= len(ticks) == len(set(ticks)) <= 8


def test_names_are_escaped(minimal_summary: StudySummary) -> None:
    one = minimal_summary.configurations[0].model_copy(update={"mixer": "<b>&", "ratio": "<i>"})
    svg = metric_svg(minimal_summary.model_copy(update={"configurations": [one], "name": '"<'}), "loss")
    assert "<b>&" in [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_absent_metric_is_an_error_that_names_the_measured_ones(minimal_summary: StudySummary) -> None:
    with pytest.raises(StudyError, match=r"'one' measured no 'recall'.*It measured: loss"):
        metric_svg(minimal_summary)
