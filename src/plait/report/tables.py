"""The table of all configurations, for the page and as CSV."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from plait.report import labels
from plait.report.figures import longest_context
from plait.report.metrics import answer_metrics, metric_order, tracks_of
from plait.statistics.interval import Interval
from plait.study.summary import Configuration, StudySummary


@dataclass(frozen=True)
class Cell:
    """One cell of the page's table.

    Args:
        text: what is read.
        detail: second line, such as an interval.
        value: what is sorted by; None stands last.
    """

    text: str
    detail: str = ""
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A heading and whether its cells are numbers."""

    name: str
    unit: str = ""
    numeric: bool = True


def full_table(summary: StudySummary) -> tuple[list[Column], list[list[Cell]]]:
    """Columns and rows of the page's table; the first column is the configuration.

    Args:
        summary: the study.

    Returns:
        Headings, and one row per configuration in the study's order.
    """
    tracks = tracks_of(summary)
    shared = all(len(set(configuration.parameters.values())) <= 1 for configuration in summary.configurations)
    context = longest_context(summary)
    first = answer_metrics(summary)
    rest = [metric for metric in metric_order(summary) if metric not in first]
    columns = [Column("Configuration", numeric=False), *(_column(metric, summary) for metric in first)]
    if context is not None:
        columns.append(Column("Cache", f"at {labels.integer(context)} tokens"))
    columns += [Column("Parameters")] if shared else [Column("Parameters", track) for track in tracks]
    widths = any(configuration.mlp_width is not None for configuration in summary.configurations)
    columns += [Column("Feed-forward width")] if widths else []
    columns += [Column("Linear layers"), Column("Full layers"), Column("Full at", "layers from 0", numeric=False)]
    columns += [_column(metric, summary) for metric in rest]
    rows = []
    for configuration in summary.configurations:
        row = [
            Cell(configuration.key, value=configuration.key),
            *(_measured(metric, configuration.metrics.get(metric)) for metric in first),
        ]
        if context is not None:
            row.append(
                Cell(labels.byte_size(configuration.cache_bytes[context]), value=configuration.cache_bytes[context])
            )
        counts = [configuration.parameters.get(track) for track in tracks]
        if shared:
            counts = [next(iter(configuration.parameters.values()), None)]
        row += [Cell(labels.integer(number), value=number) if number else Cell(labels.MISSING) for number in counts]
        if widths:
            row.append(
                Cell(labels.MISSING)
                if configuration.mlp_width is None
                else Cell(str(configuration.mlp_width), value=configuration.mlp_width)
            )
        row += [
            Cell(str(configuration.n_linear), value=configuration.n_linear),
            Cell(str(configuration.n_full), value=configuration.n_full),
            _full_layers(configuration),
        ]
        row += [_measured(metric, configuration.metrics.get(metric)) for metric in rest]
        rows.append(row)
    return columns, rows


def _column(metric: str, summary: StudySummary) -> Column:
    name, unit = labels.metric_name(metric)
    chances = {labels.guess(configuration.metrics.get(metric)) for configuration in summary.configurations} - {""}
    return Column(name, ", ".join([unit, *sorted(chances)]))


def _full_layers(configuration: Configuration) -> Cell:
    text = (
        "all"
        if configuration.n_full and not configuration.n_linear
        else ", ".join(map(str, configuration.full_layers)) or "none"
    )
    return Cell(text, value=f"{configuration.n_full:04d} {text}")


def _measured(metric: str, interval: Interval | None) -> Cell:
    if interval is None or not labels.finite(interval):
        return Cell(labels.MISSING)
    return Cell(labels.number(metric, interval.mean), labels.span(metric, interval), interval.mean)


def csv_text(summary: StudySummary) -> str:
    """One row per configuration: key, mixer, ratio, placement, layers, further grid fields, parameters and seeds by
    track, cache bytes by context, and mean, low, high, n and over of every metric. Absent values are empty."""
    tracks = tracks_of(summary)
    contexts = sorted({context for configuration in summary.configurations for context in configuration.cache_bytes})
    fields = list(dict.fromkeys(key for configuration in summary.configurations for key in configuration.fields))
    metrics = metric_order(summary)
    rows: list[dict[str, Any]] = []
    for configuration in summary.configurations:
        row: dict[str, Any] = {
            "key": configuration.key,
            "mixer": configuration.mixer,
            "ratio": configuration.ratio,
            "placement": configuration.placement,
            "n_linear": configuration.n_linear,
            "n_full": configuration.n_full,
            "full_layers": " ".join(map(str, configuration.full_layers)),
        }
        row |= {f"field:{key}": configuration.fields.get(key, "") for key in fields}
        row |= {} if configuration.mlp_width is None else {"mlp_width": configuration.mlp_width}
        row |= {f"parameters:{track}": configuration.parameters.get(track, "") for track in tracks}
        row |= {f"seeds:{track}": " ".join(map(str, configuration.seeds.get(track, []))) for track in tracks}
        row |= {f"cache_bytes@{context}": configuration.cache_bytes.get(context, "") for context in contexts}
        for metric in metrics:
            value = configuration.metrics.get(metric)
            parts = value.model_dump() if value else {}
            row |= {f"{metric}:{part}": parts.get(part, "") for part in ("mean", "low", "high", "n", "over")}
        rows.append(row)
    text = io.StringIO()
    heading = list(dict.fromkeys(key for row in rows for key in row)) or ["key"]
    writer = csv.DictWriter(text, heading, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
