"""Recall against load: how many pairs must be remembered before a model forgets."""

from __future__ import annotations

import re
from typing import Any

from plait.drawing.style import Style, ratio_dashes
from plait.report import labels
from plait.report.chart import Chart, base_layout, error_bars, hover, ratio_legend
from plait.report.series import is_transformer, with_metric
from plait.study.summary import Configuration, StudySummary

_SETTING = re.compile(r"recall@(\d+)x(\d+)")


def load_charts(summary: StudySummary, styles: dict[str, Style]) -> list[Chart]:
    """Accuracy against the number of pairs: a chart for each mixer with its ratios, the transformer in all of them.

    Args:
        summary: the study.
        styles: of :func:`plait.drawing.style.mixer_styles`.

    Returns:
        Charts with the same axes; none where recall was measured at one load only.
    """
    metrics = load_metrics(summary)
    if len(metrics) < 2:
        return []
    shown = with_metric(summary.configurations, *metrics.values())
    transformers = [configuration for configuration in shown if is_transformer(configuration)]
    ratios = labels.ordered_ratios(shown)
    dashes = ratio_dashes(ratios)
    charts = []
    for number, mixer in enumerate(styles):
        own = [one for one in shown if one.mixer == mixer and one not in transformers]
        if own:
            charts.append(_chart(f"load-{number}", styles[mixer].label, [*own, *transformers], metrics, styles, dashes))
    return charts


def load_metrics(summary: StudySummary) -> dict[int, str]:
    """Number of pairs -> its metric, ascending; of several lengths with as many pairs the shortest."""
    names = {name for configuration in summary.configurations for name in configuration.metrics}
    settings = sorted((int(m[2]), int(m[1]), m[0]) for name in names if (m := _SETTING.fullmatch(name)))
    metrics: dict[int, str] = {}
    for pairs, _, name in settings:
        metrics.setdefault(pairs, name)
    return metrics


def _chart(
    name: str,
    title: str,
    shown: list[Configuration],
    metrics: dict[int, str],
    styles: dict[str, Style],
    dashes: dict[str, str],
) -> Chart:
    data: list[dict[str, Any]] = []
    for configuration in shown:
        style = styles[configuration.mixer]
        values = [configuration.metrics[metric] for metric in metrics.values()]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(metrics),
                "y": [value.mean for value in values],
                "error_y": error_bars(values, style.colour),
                "line": {"color": style.colour, "width": 1.6, "dash": dashes[configuration.ratio]},
                "marker": {"color": style.colour, "symbol": style.symbol, "size": 7},
                "customdata": [hover(configuration, [metric]) for metric in metrics.values()],
                "hovertemplate": "%{customdata}<extra></extra>",
                "meta": {"mixer": configuration.mixer, "ratio": configuration.ratio},
            }
        )
    layout = base_layout("pairs to remember, log scale", "recall")
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": list(metrics),
        "ticktext": [labels.integer(pairs) for pairs in metrics],
    }
    most, last = list(metrics.items())[-1]
    seen = ", ".join(f"{one.key} {labels.number(last, one.metrics[last].mean)}" for one in shown)
    ratios = labels.ordered_ratios(shown)
    return Chart(
        name=name,
        title=title,
        axis="accuracy, higher is better",
        note=labels.interval_note((metric, one.metrics[metric]) for one in shown for metric in metrics.values()),
        description=f"Recall of {title} against the number of pairs. At {most} pairs: {seen}.",
        data=data,
        layout=layout,
        legend=ratio_legend(ratios, dashes),
    )
