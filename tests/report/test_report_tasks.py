"""Tracks of tasks in the report: a column, a chart and a sentence each."""

import pytest

from plait.report import labels
from plait.report.metrics import answer_metrics, metric_order
from plait.report.page import render
from plait.report.tables import csv_text, full_table
from plait.statistics.interval import Interval
from plait.study.summary import Guard, StudySummary

TRACKS = {"zebra": 0.05, "state": 0.5}


@pytest.fixture(scope="module")
def summary(full_summary: StudySummary) -> StudySummary:
    """The invented study with two tracks of tasks of one seed, one with suites, named against the alphabet."""
    configurations = []
    for index, one in enumerate(full_summary.configurations):
        values = {
            "task:zebra": (0.9 - 0.01 * index, 0.05),
            "task:zebra@niah": (0.8, 0.05),
            "task:state": (0.7, 0.5),
            "suite:state@parity length=128, accuracy": (0.6, 0.5),
            "suite:state@parity length=64, accuracy": (0.65, 0.5),
            "suite:lm@wikitext, bits per byte": (1.2, None),
        }
        metrics = {
            name: Interval(mean=mean, low=mean - 0.02, high=mean + 0.02, n=300, over="samples", chance=chance)
            for name, (mean, chance) in values.items()
        }
        configurations.append(one.model_copy(update={"metrics": {**metrics, **one.metrics}}))
    void = Guard(
        track="zebra",
        metric="task:zebra",
        baseline="transformer",
        accuracy=0.9,
        threshold=0.95,
        learnt=False,
        message="The transformer did not learn track 'zebra'.",
    )
    changes = {
        "configurations": configurations,
        "tracks": {**full_summary.tracks, **dict.fromkeys(TRACKS, "task")},
        "guards": [*full_summary.guards, void],
    }
    return full_summary.model_copy(update=changes)


def test_names_and_units() -> None:
    assert labels.metric_name("task:ruler") == ("ruler", "accuracy")
    assert labels.metric_name("task:ruler@niah") == ("ruler: niah", "accuracy")
    assert labels.metric_name("suite:lm@vt 64, ordered, f1") == ("lm: vt 64, ordered", "f1")
    assert [labels.short_name(name) for name in ("bits_per_byte", "recall", "task:a")] == [
        "bits per byte",
        "recall",
        "a",
    ]


def test_columns_follow_tracks_and_lengths(summary: StudySummary) -> None:
    assert answer_metrics(summary) == ["bits_per_byte", "recall", "task:zebra", "task:state"]
    order = metric_order(summary)
    tail = order[order.index("task:zebra") : order.index("decode@256")]
    assert tail == [
        "task:zebra",
        "task:zebra@niah",
        "task:state",
        "suite:lm@wikitext, bits per byte",
        "suite:state@parity length=64, accuracy",
        "suite:state@parity length=128, accuracy",
    ]


def test_table_has_a_column_per_track_with_its_number(summary: StudySummary) -> None:
    columns, rows = full_table(summary)
    assert [(one.name, one.unit) for one in columns[1:5]] == [
        ("Held-out loss", "bits per byte"),
        ("Recall", "mean accuracy"),
        ("zebra", "accuracy, chance 0.050"),
        ("state", "accuracy, chance 0.500"),
    ]
    assert [(row[3].text, row[3].detail, row[4].text) for row in rows[:2]] == [
        ("0.900", "0.880 to 0.920", "0.700"),
        ("0.890", "0.870 to 0.910", "0.700"),
    ]
    details = [(one.name, one.unit) for one in columns[5:]]
    assert ("state: parity length=128", "accuracy, chance 0.500") in details
    assert ("lm: wikitext", "bits per byte") in details
    assert "task:zebra:mean" in csv_text(summary).splitlines()[0]


def test_page_draws_each_track_and_says_what_was_not_learnt(summary: StudySummary, full_summary: StudySummary) -> None:
    page = render(summary)
    tasks = page.split("Other tasks against ratio</h2>")[1].split("</section>")[0]
    assert [name in tasks for name in ("Track zebra", "Track state", 'data-chart="task-2"')] == [True] * 3
    assert "A guess would reach 0.050." in tasks
    assert "300 held-out examples of one seed" in tasks
    assert tasks.count("did not learn track &#39;zebra&#39;") == 1
    recall = page.split("Recall against ratio</h2>")[1].split("</section>")[0]
    assert "zebra" not in recall.split("<figure")[0]  # only recall's own guard
    answer = page.split('id="answer"')[1].split("</section>")[0]
    assert "Track zebra is void." in answer
    assert answer.count("zebra, accuracy") == 1  # a row of the small table
    assert "Other tasks" not in render(full_summary)
