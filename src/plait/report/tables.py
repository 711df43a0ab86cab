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
    shared = all(len(set(one.parameters.values())) <= 1 for one in summary.configurations)
    context = longest_context(summary)
    first = answer_metrics(summary)
    rest = [metric for metric in metric_order(summary) if metric not in first]
    columns = [Column("Configuration", numeric=False), *(_column(metric, summary) for metric in first)]
    if context is not None:
        columns.append(Column("Cache", f"at {labels.integer(context)} tokens"))
    columns += [Column("Parameters")] if shared else [Column("Parameters", track) for track in tracks]
    widths = any(one.mlp_width is not None for one in summary.configurations)
    columns += [Column("Feed-forward width")] if widths else []
    columns += [Column("Linear layers"), Column("Full layers"), Column("Full at", "layers from 0", numeric=False)]
    columns += [_column(metric, summary) for metric in rest]
    rows = []
    for one in summary.configurations:
        row = [Cell(one.key, value=one.key), *(_measured(metric, one.metrics.get(metric)) for metric in first)]
        if context is not None:
            row.append(Cell(labels.byte_size(one.cache_bytes[context]), value=one.cache_bytes[context]))
        counts = [one.parameters.get(track) for track in tracks]
        if shared:
            counts = [next(iter(one.parameters.values()), None)]
        row += [Cell(labels.integer(number), value=number) if number else Cell(labels.MISSING) for number in counts]
        if widths:
            row.append(Cell(labels.MISSING) if one.mlp_width is None else Cell(str(one.mlp_width), value=one.mlp_width))
        row += [Cell(str(one.n_linear), value=one.n_linear), Cell(str(one.n_full), value=one.n_full), _full_layers(one)]
        row += [_measured(metric, one.metrics.get(metric)) for metric in rest]
        rows.append(row)
    return columns, rows


def _column(metric: str, summary: StudySummary) -> Column:
    name, unit = labels.metric_name(metric)
    chances = {labels.guess(one.metrics.get(metric)) for one in summary.configurations} - {""}
    return Column(name, ", ".join([unit, *sorted(chances)]))


def _full_layers(one: Configuration) -> Cell:
    text = "all" if one.n_full and not one.n_linear else ", ".join(map(str, one.full_layers)) or "none"
    return Cell(text, value=f"{one.n_full:04d} {text}")


def _measured(metric: str, interval: Interval | None) -> Cell:
    if interval is None or not labels.finite(interval):
        return Cell(labels.MISSING)
    return Cell(labels.number(metric, interval.mean), labels.span(metric, interval), interval.mean)


def csv_text(summary: StudySummary) -> str:
    """One row per configuration: key, mixer, ratio, placement, layers, further grid fields, parameters and seeds by
    track, cache bytes by context, and mean, low, high, n and over of every metric. Absent values are empty."""
    tracks = tracks_of(summary)
    contexts = sorted({context for one in summary.configurations for context in one.cache_bytes})
    fields = list(dict.fromkeys(key for one in summary.configurations for key in one.fields))
    metrics = metric_order(summary)
    rows: list[dict[str, Any]] = []
    for one in summary.configurations:
        row: dict[str, Any] = {
            "key": one.key,
            "mixer": one.mixer,
            "ratio": one.ratio,
            "placement": one.placement,
            "n_linear": one.n_linear,
            "n_full": one.n_full,
            "full_layers": " ".join(map(str, one.full_layers)),
        }
        row |= {f"field:{key}": one.fields.get(key, "") for key in fields}
        row |= {} if one.mlp_width is None else {"mlp_width": one.mlp_width}
        row |= {f"parameters:{track}": one.parameters.get(track, "") for track in tracks}
        row |= {f"seeds:{track}": " ".join(map(str, one.seeds.get(track, []))) for track in tracks}
        row |= {f"cache_bytes@{context}": one.cache_bytes.get(context, "") for context in contexts}
        for metric in metrics:
            value = one.metrics.get(metric)
            parts = value.model_dump() if value else {}
            row |= {f"{metric}:{part}": parts.get(part, "") for part in ("mean", "low", "high", "n", "over")}
        rows.append(row)
    text = io.StringIO()
    heading = list(dict.fromkeys(key for row in rows for key in row)) or ["key"]
    writer = csv.DictWriter(text, heading, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
