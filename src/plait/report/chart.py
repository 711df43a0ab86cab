"""What the charts of a report share: the words around them, legend, axes, error bars, hover text.

A figure is plain data for plotly. It names colours by role (``"color": "mixer-2"``); the page's script puts in the
colour of the reader's theme. Text that comes from a study is escaped here, since plotly reads tags in labels.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from plait.drawing.style import Style
from plait.report import labels
from plait.statistics.interval import Interval
from plait.study.summary import Configuration


@dataclass(frozen=True)
class Legend:
    """One entry of a chart's legend, which shows or hides the traces of a mixer or ratio.

    Args:
        kind: ``mixer`` or ``ratio``.
        value: the mixer or ratio.
        label: text.
        colour: role of the colour.
        symbol: plotly's name of the marker; empty for a line.
        dash: plotly's name of the dash.
    """

    kind: str
    value: str
    label: str
    colour: str
    symbol: str = ""
    dash: str = "solid"


@dataclass(frozen=True)
class Chart:
    """One chart and the words around it.

    Args:
        name: identifier in the page.
        axis: what is measured upwards, with unit and direction.
        note: sentence below the chart, among others on the intervals.
        description: the chart in words, for readers who do not see it.
        data, layout: of plotly.
        legend: entries in order.
        title: heading, where several charts share a section.
    """

    name: str
    axis: str
    note: str
    description: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    legend: list[Legend] = field(default_factory=list)
    title: str = ""


def mixer_legend(shown: list[Configuration], styles: dict[str, Style], symbol: bool = True) -> list[Legend]:
    """Entries that show or hide mixers, with their markers, or with lines where a chart has no markers."""
    present = {configuration.mixer for configuration in shown}
    return [
        Legend("mixer", mixer, style.label, style.colour, style.symbol if symbol else "")
        for mixer, style in styles.items()
        if mixer in present
    ]


def ratio_legend(ratios: Iterable[str], dashes: dict[str, str]) -> list[Legend]:
    """Entries that show or hide ratios, where a ratio is a dash; none when there is a single ratio."""
    ratios = list(ratios)
    return [Legend("ratio", ratio, ratio, "muted", dash=dashes[ratio]) for ratio in ratios] if len(ratios) > 1 else []


def base_layout(x_title: str, metric: str) -> dict[str, Any]:
    """A quiet layout. Axes do not zoom, so that a finger on the chart scrolls the page.

    Args:
        x_title: title of the horizontal axis.
        metric: what is measured upwards; sets range and ticks.
    """
    axis = {
        "fixedrange": True,
        "automargin": True,
        "gridcolor": "grid",
        "linecolor": "line",
        "tickfont": {"color": "muted", "size": 12},
        "zeroline": False,
    }
    upwards: dict[str, Any] = {**axis}
    if metric == "recall" or metric.startswith("task:"):
        upwards |= {"range": [-0.03, 1.04], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    elif metric.startswith("decode"):
        upwards |= {"rangemode": "tozero", "tickformat": ",.0f"}
    else:
        upwards |= {"tickformat": ".3f", "nticks": 7}
    return {
        "autosize": True,
        "margin": {"l": 44, "r": 14, "t": 10, "b": 44},
        "showlegend": False,
        "hovermode": "closest",
        "dragmode": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": "ink"},
        "hoverlabel": {
            "bgcolor": "raised",
            "bordercolor": "line",
            "font": {"color": "ink", "size": 13},
            "align": "left",
        },
        "xaxis": {
            **axis,
            "showline": True,
            "title": {"text": x_title, "standoff": 10, "font": {"color": "muted", "size": 12}},
        },
        "yaxis": upwards,
    }


def error_bars(values: list[Interval], colour: str) -> dict[str, Any]:
    """Asymmetric bars from low to high."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [value.high - value.mean for value in values],
        "arrayminus": [value.mean - value.low for value in values],
        "color": colour,
        "thickness": 1.4,
        "width": 3,
        "visible": any(value.over != "none" for value in values),
    }


def hover(configuration: Configuration, metrics: list[str], context: int | None = None) -> str:
    """What a point says when touched: configuration, layers, metrics with intervals, cache, parameters."""
    lines = [f"<b>{escape(configuration.key)}</b>", escape(labels.layers(configuration))]
    for metric in metrics:
        value = configuration.metrics.get(metric)
        if value is not None and labels.finite(value):
            name, unit = labels.metric_name(metric)
            spread = ", ".join(part for part in (labels.span(metric, value), labels.basis(metric, value)) if part)
            lines.append(escape(f"{name}: {labels.number(metric, value.mean)} {unit} ({spread})"))
    if context is not None and context in configuration.cache_bytes:
        lines.append(
            f"Cache at {labels.integer(context)} tokens: {labels.byte_size(configuration.cache_bytes[context])}"
        )
    counts = dict.fromkeys(configuration.parameters.values())
    if counts:
        lines.append(f"Parameters: {' / '.join(map(labels.count, counts))}")
    return "<br>".join(lines)


def escape(text: str) -> str:
    """Text that plotly shows as it is, tags included."""
    return html.escape(text, quote=False)
