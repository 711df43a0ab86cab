"""Which metrics a study has, and in which order they are shown."""

from __future__ import annotations

import re

from plait.study.summary import StudySummary

#: Metrics in the order of columns; settings such as ``recall@256x32`` stand behind the metric that they belong to.
METRIC_ORDER = ["bits_per_byte", "loss", "ar_loss", "other_loss", "recall", "task", "suite", "decode"]


def metric_order(summary: StudySummary) -> list[str]:
    """All metrics of a study in the order of columns."""
    tracks = tracks_of(summary)

    def place(metric: str) -> tuple[int, int, list[str | int], str]:
        kind, _, setting = metric.partition("@")
        source, _, track = kind.partition(":")
        rank = METRIC_ORDER.index(source) if source in METRIC_ORDER else len(METRIC_ORDER)
        return rank, tracks.index(track) if track in tracks else len(tracks), _numbered(setting), metric

    return sorted({metric for configuration in summary.configurations for metric in configuration.metrics}, key=place)


def _numbered(text: str) -> list[str | int]:
    """Text and numbers in turn, so that 64 stands before 128."""
    parts = re.split(r"([0-9]+)", text)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def task_metrics(summary: StudySummary) -> list[str]:
    """The accuracy of each track of tasks, in the order of tracks."""
    return [metric for metric in metric_order(summary) if metric.startswith("task:") and "@" not in metric]


def answer_metrics(summary: StudySummary) -> list[str]:
    """What configurations are compared by: held-out loss, recall, the accuracy of each further track."""
    first = {"bits_per_byte", "recall", *task_metrics(summary)}
    return [metric for metric in metric_order(summary) if metric in first]


def tracks_of(summary: StudySummary) -> list[str]:
    """The tracks of a study, and those that only its configurations know."""
    tracks = dict.fromkeys(summary.tracks)
    for configuration in summary.configurations:
        tracks |= dict.fromkeys([*configuration.parameters, *configuration.seeds])
    return list(tracks)
