"""Recall against load: one chart a mixer, ratios as lines, the transformer in each."""

from __future__ import annotations

from plait.drawing.style import mixer_styles
from plait.report.load_charts import load_charts, load_metrics
from plait.report.page import render
from plait.study.summary import StudySummary


def styles_of(summary: StudySummary):
    return mixer_styles(configuration.mixer for configuration in summary.configurations)


def test_each_mixer_has_a_chart_with_its_ratios_and_the_transformer(full_summary: StudySummary) -> None:
    charts = load_charts(full_summary, styles_of(full_summary))
    mixers = {one.mixer for one in full_summary.configurations if one.ratio != "full"}
    assert len(charts) == len(mixers)
    known = {(one.mixer, one.ratio): one for one in full_summary.configurations}
    for chart in charts:
        own = {line["meta"]["mixer"] for line in chart.data} - {"attention"}
        assert len(own) == 1
        assert [line["meta"]["ratio"] for line in chart.data].count("full") == 1
        for line in chart.data:
            configuration = known[line["meta"]["mixer"], line["meta"]["ratio"]]
            assert line["x"] == [4, 8, 16]
            settings = ("recall@64x4", "recall@128x8", "recall@256x16")
            assert line["y"] == [configuration.metrics[setting].mean for setting in settings]
    assert "Recall against load" in render(full_summary)


def test_of_several_lengths_the_shortest_shows_the_load(full_summary: StudySummary) -> None:
    full_summary = full_summary.model_copy(deep=True)
    for configuration in full_summary.configurations:
        configuration.metrics["recall@512x4"] = configuration.metrics["recall@64x4"]
    assert load_metrics(full_summary) == {4: "recall@64x4", 8: "recall@128x8", 16: "recall@256x16"}


def test_one_load_is_no_curve(full_summary: StudySummary) -> None:
    full_summary = full_summary.model_copy(deep=True)
    for configuration in full_summary.configurations:
        for setting in ("recall@64x4", "recall@128x8"):
            del configuration.metrics[setting]
    assert load_charts(full_summary, styles_of(full_summary)) == []
    assert "Recall against load" not in render(full_summary)
