import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plait.drawing.style import PALETTE, mixer_styles
from plait.report import write_report
from plait.report.figures import curve_chart, decode_chart, loss_charts, pareto_chart, ratio_chart
from plait.report.page import render
from plait.report.tables import full_table
from plait.study.summary import Curve, Guard, Recommendation, StudySummary


class Reader(HTMLParser):
    """Elements, their balance, headings and text."""

    VOID = frozenset({"meta", "link", "path", "br", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.headings: list[tuple[str, str]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.stack, f"elements left open: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag in ("h1", "h2", "h3"):
            self.headings.append((tag, ""))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.stack):
            self.text += data
            if self.stack and self.stack[-1] in ("h1", "h2", "h3"):
                tag, text = self.headings.pop()
                self.headings.append((tag, (text + data).strip()))

    @property
    def sections(self) -> list[str]:
        return [text for tag, text in self.headings if tag == "h2"]


def _styles(summary: StudySummary) -> dict[str, Any]:
    return mixer_styles(one.mixer for one in summary.configurations)


def test_files_and_their_content(full_summary: StudySummary, tmp_path: Path) -> None:
    page = write_report(full_summary, tmp_path / "deep" / "folder")
    assert page == tmp_path / "deep" / "folder" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.csv", "report.html", "report.json"]
    restored = StudySummary.model_validate_json(page.with_name("report.json").read_text())
    assert restored.configurations == full_summary.configurations
    assert restored.recommendation == full_summary.recommendation


def test_csv_has_a_row_per_configuration_with_every_value(full_summary: StudySummary, tmp_path: Path) -> None:
    with write_report(full_summary, tmp_path).with_name("report.csv").open(newline="") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(full_summary.configurations)
    for one in full_summary.configurations:
        row = rows[one.key]
        assert (row["mixer"], row["ratio"], row["placement"]) == (one.mixer, one.ratio, one.placement)
        assert (int(row["n_linear"]), int(row["n_full"])) == (one.n_linear, one.n_full)
        assert [int(layer) for layer in row["full_layers"].split()] == one.full_layers
        assert int(row["parameters:lm"]) == one.parameters["lm"]
        assert {
            int(key.split("@")[1]): int(row[key]) for key in row if key.startswith("cache_bytes@")
        } == one.cache_bytes
        for metric, value in one.metrics.items():
            read = [float(row[f"{metric}:{part}"]) for part in ("mean", "low", "high", "n")]
            assert read == [value.mean, value.low, value.high, value.n]


def test_answer_stands_first_and_sections_in_order(full_summary: StudySummary) -> None:
    reader = Reader(render(full_summary))
    assert reader.sections == [
        "The answer",
        "Loss against ratio",
        "Recall against ratio",
        "Recall against load",
        "Recall against cache",
        "Training loss",
        "Where the loss differs",
        "Decoding speed",
        "All configurations",
        "Published claims, decided on this study",
        "Failed trials",
        "This run",
    ]
    assert len(set(reader.ids)) == len(reader.ids)
    for sentence in full_summary.recommendation.sentences:
        assert sentence in reader.text
    for claim in full_summary.claims:
        for part in (claim.sentence, claim.published, claim.rule, claim.seen, claim.verdict):
            assert part in reader.text
    for part in (
        full_summary.failed[0].error,
        full_summary.command,
        full_summary.machine,
        "torch 2.13.0",
        "lm: 0, 1, 2",
    ):
        assert part in reader.text
    assert "hidden_size: 128" in reader.text


def test_page_loads_nothing(full_summary: StudySummary) -> None:
    page = render(full_summary)
    addresses = Reader(page).addresses
    assert [one for one in addresses if not one.startswith(("#", "data:", "https://arxiv.org/"))] == []
    assert "default-src 'none'" in page


def test_minimal_study_leaves_out_what_it_has_not(minimal_summary: StudySummary) -> None:
    reader = Reader(render(minimal_summary))
    assert reader.sections == ["The answer", "Loss against ratio", "All configurations", "This run"]
    assert "No recommendation" in reader.text
    assert "The study has no transformer to compare with." in reader.text
    assert "Not measured in this study: recall," in reader.text
    assert "8 held-out windows of one seed" in reader.text


def test_study_without_results_says_so(minimal_summary: StudySummary) -> None:
    empty = minimal_summary.model_copy(update={"configurations": [], "finished": 0, "trials": 4})
    reader = Reader(render(empty))
    assert "No configuration has a result yet." in reader.text
    assert "4 of 4 trials have not finished" in reader.text


def test_unlearnt_track_is_void_and_said_once_in_the_answer(full_summary: StudySummary) -> None:
    message = "The transformer did not learn track 'recall' (recall 0.200, 0.9 was asked for)."
    guard = Guard(track="recall", baseline="transformer", accuracy=0.2, threshold=0.9, learnt=False, message=message)
    void = {"guards": [guard], "recommendation": Recommendation(key=None, sentences=[f"No recommendation: {message}"])}
    answer = Reader(render(full_summary.model_copy(update=void))).text.split("Loss against ratio")[0]
    assert answer.count("did not learn track") == 1
    assert answer.count("No recommendation") == 1
    still = Reader(render(full_summary.model_copy(update={"guards": [guard]}))).text.split("Loss against ratio")[0]
    assert "Track recall is void." in still
    assert message in still


HOSTILE = "</script><b>bold</b>{{ 7 * 7 }}%{x}"


def _hostile(summary: StudySummary) -> StudySummary:
    first = summary.configurations[-1].model_copy(
        update={"key": HOSTILE, "mixer": HOSTILE, "ratio": HOSTILE, "fields": {"model.mixers": HOSTILE}}
    )
    return summary.model_copy(
        update={
            "name": HOSTILE,
            "description": HOSTILE,
            "configurations": [*summary.configurations[:-1], first],
            "tracks": {"lm": HOSTILE, HOSTILE: "recall"},
            "curves": [Curve(key=HOSTILE, track=HOSTILE, seed=0, points=[(1, 2.0), (2, 1.0)])],
            "recommendation": Recommendation(key=HOSTILE, sentences=[HOSTILE]),
            "study": {HOSTILE: [HOSTILE]},
            "versions": {HOSTILE: HOSTILE},
        }
    )


def test_values_of_a_study_cannot_break_the_page(full_summary: StudySummary) -> None:
    page = render(_hostile(full_summary))
    reader = Reader(page)
    assert page.count("</script>") == 3
    assert "b" not in [tag for tag, _ in reader.headings]
    assert "<b>bold" not in page
    assert reader.text.count(HOSTILE) >= 8


def test_table_has_missing_values_as_none(full_summary: StudySummary) -> None:
    first = full_summary.configurations[1]
    metrics = {key: value for key, value in first.metrics.items() if key != "recall"}
    metrics["loss"] = metrics["loss"].model_copy(update={"mean": math.nan})
    changed = first.model_copy(update={"metrics": metrics})
    columns, rows = full_table(
        full_summary.model_copy(update={"configurations": [changed, *full_summary.configurations[2:]]})
    )
    names = [(column.name, column.unit) for column in columns]
    for heading in (("Recall", "mean accuracy"), ("Held-out loss", "nats per token")):
        cell = rows[0][names.index(heading)]
        assert (cell.text, cell.value) == ("–", None)
    assert all(len(row) == len(columns) for row in rows)


def test_ratio_chart_has_means_intervals_and_band(full_summary: StudySummary) -> None:
    chart = ratio_chart(full_summary, _styles(full_summary), "recall", "recall")
    assert chart is not None
    known = {one.key: one for one in full_summary.configurations}
    gla = next(trace for trace in chart.data if trace["meta"] == {"mixer": "gla"})
    wanted = [known[f"gla {ratio}"].metrics["recall"] for ratio in ("pure", "7:1", "3:1", "1:1")]
    assert gla["y"] == [value.mean for value in wanted]
    assert gla["error_y"]["array"] == [value.high - value.mean for value in wanted]
    assert gla["error_y"]["arrayminus"] == [value.mean - value.low for value in wanted]
    assert [round(place) for place in gla["x"]] == [0, 1, 2, 3]
    assert [text.split("<")[0] for text in chart.layout["xaxis"]["ticktext"]] == ["pure", "7:1", "3:1", "1:1", "full"]
    band = next(trace for trace in chart.data if "fill" in trace)
    transformer = known["transformer"].metrics["recall"]
    assert {min(band["y"]), max(band["y"])} == {transformer.low, transformer.high}
    assert "3 seeds" in chart.note


def test_pareto_chart_draws_the_front_of_the_summary(full_summary: StudySummary) -> None:
    chart = pareto_chart(full_summary, _styles(full_summary), 4096)
    assert chart is not None
    known = {one.key: one for one in full_summary.configurations}
    front = next(trace for trace in chart.data if trace["meta"].get("role") == "front")
    assert front["x"] == sorted(known[key].cache_bytes[4096] for key in full_summary.pareto)
    points = [text for trace in chart.data for text in trace.get("customdata", [])]
    assert len(points) == len(known)
    assert all(any(text.startswith(f"<b>{key}</b>") for text in points) for key in known)


def test_curves_are_means_over_seeds(minimal_summary: StudySummary) -> None:
    curves = [Curve(key="gla 3:1", track="lm", seed=seed, points=[(10, 4.0 + seed), (20, 2.0)]) for seed in (0, 1)]
    summary = minimal_summary.model_copy(update={"curves": curves})
    chart = curve_chart(summary, _styles(summary), "lm")
    assert chart is not None
    assert (chart.data[0]["x"], chart.data[0]["y"]) == ([10, 20], [4.5, 2.0])
    assert curve_chart(summary, _styles(summary), "recall") is None


def test_split_losses_share_one_scale(full_summary: StudySummary) -> None:
    hits, others = loss_charts(full_summary, _styles(full_summary))
    reach = [chart.layout["yaxis"]["range"][1] - chart.layout["yaxis"]["range"][0] for chart in (hits, others)]
    assert reach[0] == pytest.approx(reach[1])
    for chart in (hits, others):
        low, high = chart.layout["yaxis"]["range"]
        assert all(low < value < high for trace in chart.data for value in trace["y"])


def test_speed_at_one_context_is_drawn_against_the_ratio(full_summary: StudySummary) -> None:
    configurations = [
        one.model_copy(update={"metrics": {"decode@256": one.metrics["decode@256"]}})
        for one in full_summary.configurations
    ]
    summary = full_summary.model_copy(update={"configurations": configurations})
    chart = decode_chart(summary, _styles(summary))
    assert chart is not None
    assert chart.layout["xaxis"]["ticktext"][0].startswith("pure")
    several = decode_chart(full_summary, _styles(full_summary))
    assert several is not None
    assert several.layout["xaxis"]["tickvals"] == [256, 1024, 4096]


def test_colours_are_roles_of_the_palette(full_summary: StudySummary) -> None:
    def colours(value: Any, key: str = "") -> list[str]:
        if isinstance(value, dict):
            return [one for name, item in value.items() for one in colours(item, name)]
        if isinstance(value, list):
            return [one for item in value for one in colours(item, key)]
        return [value] if key.endswith("color") else []

    page = render(full_summary)
    payload = json.loads(page.split('id="charts">')[1].split("</script>")[0])
    used = {one for chart in payload["charts"] for one in colours(chart) if not one.startswith("rgba")}
    assert len(payload["charts"]) == 14
    assert used <= set(PALETTE["light"])
    assert set(PALETTE["light"]) == set(PALETTE["dark"])
