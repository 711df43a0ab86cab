"""The charts of a report."""

from __future__ import annotations

import math
from typing import Any

from plait.drawing.style import DASHES, Style, ratio_dashes
from plait.report import labels
from plait.report.chart import Chart, base_layout, error_bars, escape, hover, mixer_legend, ratio_legend
from plait.report.metrics import answer_metrics
from plait.report.series import Series, group, is_transformer, with_metric
from plait.study.summary import Configuration, Curve, StudySummary

#: Points of a training curve that are drawn at most.
CURVE_POINTS = 160


def ratio_chart(summary: StudySummary, styles: dict[str, Style], metric: str, name: str, **words: str) -> Chart | None:
    """A metric against the ratio, a line per mixer with intervals, the transformer as a band.

    Args:
        summary: the study.
        styles: of :func:`plait.drawing.style.mixer_styles`.
        metric: key of ``Configuration.metrics``.
        name: identifier of the chart.
        words: ``title`` of the chart and ``better`` (``lower is better``).

    Returns:
        The chart, or None where no configuration has the metric.
    """
    shown = with_metric(summary.configurations, metric)
    if not shown:
        return None
    ratios = labels.ordered_ratios(shown)
    series = sorted(group(shown), key=lambda line: list(styles).index(line.mixer))
    lines = [line for line in series if not is_transformer(line.members[0])]
    dashes = _variant_dashes(lines)
    data: list[dict[str, Any]] = []
    for transformer in filter(is_transformer, shown):
        data += _band(transformer, metric, len(ratios), styles)
    for index, line in enumerate(lines):
        shift = 0.0 if len(lines) == 1 else 0.3 * (index / (len(lines) - 1) - 0.5)
        data.append(_ratio_line(line, metric, ratios, shift, styles, dashes[line.variant]))
    data += [_ratio_line(line, metric, ratios, 0.0, styles, "solid") for line in series if line not in lines]
    layout = base_layout("linear layers per full layer (full / all)", metric)
    layout["xaxis"] |= {
        "tickvals": list(range(len(ratios))),
        "ticktext": [_ratio_tick(ratio, shown) for ratio in ratios],
        "range": [-0.5, len(ratios) - 0.5],
        "showgrid": False,
    }
    del layout["xaxis"]["gridcolor"]
    unit = labels.metric_name(metric)[1]
    better = words.get("better", "")
    notes = [labels.interval_note((metric, configuration.metrics[metric]) for configuration in shown)]
    chance = next(
        (
            configuration.metrics[metric].chance
            for configuration in shown
            if configuration.metrics[metric].chance is not None
        ),
        None,
    )
    if chance is not None:
        notes.append(f"A guess would reach {chance:.3f}.")
    if any(map(is_transformer, shown)):
        notes.append("The grey band is the transformer's interval.")
    if len(dashes) > 1:
        notes.append(
            "Lines: " + ", ".join(f"{dash} for {variant}" for variant, dash in dashes.items() if variant) + "."
        )
    return Chart(
        name=name,
        title=words.get("title", ""),
        axis=", ".join(part for part in (unit, better) if part),
        note=" ".join(notes),
        description=_described(labels.metric_name(metric)[0] + " against ratio", series, metric, styles),
        data=data,
        layout=layout,
        legend=mixer_legend(shown, styles),
    )


def loss_charts(summary: StudySummary, styles: dict[str, Style]) -> list[Chart]:
    """Loss on AR hits beside loss on the other tokens, drawn with one scale so that slopes compare.

    AR hits are tokens that complete a bigram already seen in the context (Based, arXiv 2402.18668).

    Returns:
        Two charts, or none where the loss was not split.
    """
    parts = {"ar_loss": "AR hits", "other_loss": "Other tokens"}
    charts = {
        metric: ratio_chart(summary, styles, metric, metric, title=title, better="lower is better")
        for metric, title in parts.items()
    }
    complete = {metric: chart for metric, chart in charts.items() if chart is not None}
    if len(complete) < len(parts):
        return []
    ends = {}
    for metric in complete:
        values = [configuration.metrics[metric] for configuration in with_metric(summary.configurations, metric)]
        ends[metric] = min(value.low for value in values), max(value.high for value in values)
    reach = 0.56 * max(high - low for low, high in ends.values()) or 0.1
    for metric, chart in complete.items():
        middle = sum(ends[metric]) / 2
        chart.layout["yaxis"]["range"] = [middle - reach, middle + reach]
    return list(complete.values())


def pareto_chart(summary: StudySummary, styles: dict[str, Style], context: int | None) -> Chart | None:
    """Recall against the cache bytes of one sequence, with the configurations that no other beats."""
    if context is None:
        return None
    shown = [
        configuration
        for configuration in with_metric(summary.configurations, "recall")
        if configuration.cache_bytes.get(context, 0) > 0
    ]
    if not shown:
        return None
    sizes = [configuration.cache_bytes[context] for configuration in shown]
    front = sorted(
        (configuration for configuration in shown if configuration.key in summary.pareto),
        key=lambda configuration: configuration.cache_bytes[context],
    )
    best = {configuration.key for configuration in front}
    named = _named(front, context, math.log2(max(sizes) / min(sizes)))
    data: list[dict[str, Any]] = []
    if front:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"color": "muted", "width": 1.5, "shape": "hv"},
                "x": [configuration.cache_bytes[context] for configuration in front],
                "y": [configuration.metrics["recall"].mean for configuration in front],
                "hoverinfo": "skip",
                "meta": {"role": "front"},
            }
        )
    for mixer, style in styles.items():
        own = [configuration for configuration in shown if configuration.mixer == mixer]
        if not own:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [configuration.cache_bytes[context] for configuration in own],
                "y": [configuration.metrics["recall"].mean for configuration in own],
                "error_y": error_bars([configuration.metrics["recall"] for configuration in own], style.colour),
                "marker": {
                    "color": style.colour,
                    "symbol": style.symbol,
                    "size": [12 if configuration.key in best else 8 for configuration in own],
                    "opacity": 1,
                    "line": {"color": "paper", "width": 1},
                },
                "text": [escape(configuration.ratio) if configuration.key in named else "" for configuration in own],
                "textposition": "top left",
                "textfont": {"color": "ink", "size": 12},
                "cliponaxis": False,
                "customdata": [
                    hover(configuration, [*answer_metrics(summary), "loss"], context) for configuration in own
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "meta": {"mixer": mixer},
            }
        )
    layout = base_layout(f"cache of one sequence at {labels.integer(context)} tokens (log)", "recall")
    layout["xaxis"] |= byte_axis(min(sizes), max(sizes))
    note = labels.interval_note(("recall", configuration.metrics["recall"]) for configuration in shown)
    if front:
        note = f"The line joins the Pareto front: no other configuration recalls as much with a smaller cache. {note}"
    points = "; ".join(
        f"{configuration.key} {labels.byte_size(configuration.cache_bytes[context])} "
        f"{labels.number('recall', configuration.metrics['recall'].mean)}"
        for configuration in front
    )
    return Chart(
        name="pareto",
        axis="mean accuracy, higher is better",
        note=note,
        description=f"Recall against cache bytes. Pareto front: {points or 'none'}.",
        data=data,
        layout=layout,
        legend=mixer_legend(shown, styles),
    )


def curve_chart(summary: StudySummary, styles: dict[str, Style], track: str) -> Chart | None:
    """Training loss against the step on one track, one line per configuration, the mean over its seeds."""
    curves = [curve for curve in summary.curves if curve.track == track and curve.points]
    known = {configuration.key: configuration for configuration in summary.configurations}
    shown = [known[key] for key in dict.fromkeys(curve.key for curve in curves) if key in known]
    if not shown:
        return None
    ratios = labels.ordered_ratios(shown)
    dashes = ratio_dashes(ratios)
    data: list[dict[str, Any]] = []
    for configuration in sorted(
        shown,
        key=lambda configuration: (list(styles).index(configuration.mixer), labels.ratio_order(configuration.ratio)),
    ):
        own = [curve for curve in curves if curve.key == configuration.key]
        points = _thinned(_mean_curve(own))
        if not points:
            continue
        seeds = f"mean over {len(own)} seeds" if len(own) > 1 else f"seed {own[0].seed}"
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [step for step, _ in points],
                "y": [loss for _, loss in points],
                "line": {
                    "color": styles[configuration.mixer].colour,
                    "width": 1.6,
                    "dash": dashes[configuration.ratio],
                },
                "text": f"<b>{escape(configuration.key)}</b> ({seeds})",
                "hovertemplate": "%{text}<br>step %{x:,}: %{y:.3f}<extra></extra>",
                "meta": {"mixer": configuration.mixer, "ratio": configuration.ratio},
            }
        )
    if not data:
        return None
    layout = base_layout("optimiser step", "")
    layout["yaxis"] |= {"type": "log", "nticks": 6, "tickformat": ".3~f"} | _end_of_training(data)
    return Chart(
        name=f"curves-{list(summary.tracks).index(track) if track in summary.tracks else track}",
        title=f"Track {track}",
        axis="training loss in nats per token, log scale",
        note="Each line is one configuration, the mean over its seeds. "
        "The scale is that of the last four fifths; the start may lie above it.",
        description=f"Training loss of {len(data)} configurations on track {track}.",
        data=data,
        layout=layout,
        legend=[*mixer_legend(shown, styles, symbol=False), *ratio_legend(ratios, dashes)],
    )


def decode_chart(summary: StudySummary, styles: dict[str, Style]) -> Chart | None:
    """Decoding speed against the context length, one line per configuration."""
    contexts = decode_contexts(summary)
    if len(contexts) < 2:
        if not contexts:
            return None
        metric = f"decode@{contexts[0]}"
        words = f"one sequence, {labels.integer(contexts[0])} tokens of context, higher is better"
        return ratio_chart(summary, styles, metric, "decode", better=words)
    shown = [
        configuration
        for configuration in summary.configurations
        if any(finite_decode(configuration, context) for context in contexts)
    ]
    ratios = labels.ordered_ratios(shown)
    dashes = ratio_dashes(ratios)
    data: list[dict[str, Any]] = []
    for configuration in shown:
        style = styles[configuration.mixer]
        own = [context for context in contexts if finite_decode(configuration, context)]
        speeds = [configuration.metrics[f"decode@{context}"] for context in own]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": own,
                "y": [speed.mean for speed in speeds],
                "error_y": error_bars(speeds, style.colour),
                "line": {"color": style.colour, "width": 1.6, "dash": dashes[configuration.ratio]},
                "marker": {"color": style.colour, "symbol": style.symbol, "size": 7},
                "customdata": [hover(configuration, [f"decode@{context}"], context) for context in own],
                "hovertemplate": "%{customdata}<extra></extra>",
                "meta": {"mixer": configuration.mixer, "ratio": configuration.ratio},
            }
        )
    layout = base_layout("tokens of context, log scale", "decode")
    ends = math.log10(contexts[0]), math.log10(contexts[-1])
    margin = 0.06 * (ends[1] - ends[0])
    layout["xaxis"] |= {
        "type": "log",
        "tickvals": contexts,
        "ticktext": [labels.integer(context) for context in contexts],
        "range": [ends[0] - margin, ends[1] + margin],
    }
    measured = [
        (configuration, context)
        for configuration in shown
        for context in contexts
        if finite_decode(configuration, context)
    ]
    last = contexts[-1]
    return Chart(
        name="decode",
        axis="tokens/s, one sequence, higher is better",
        note=labels.interval_note(
            ("decode", configuration.metrics[f"decode@{context}"]) for configuration, context in measured
        ),
        description=f"Decoding speed against context. At {labels.integer(last)} tokens: "
        + "; ".join(
            f"{configuration.key} {labels.number('decode@', configuration.metrics[f'decode@{last}'].mean)} tokens/s"
            for configuration in shown
            if finite_decode(configuration, last)
        )
        + ".",
        data=data,
        layout=layout,
        legend=[*mixer_legend(shown, styles), *ratio_legend(ratios, dashes)],
    )


def decode_contexts(summary: StudySummary) -> list[int]:
    """Context lengths at which a decoding speed was measured, ascending."""
    keys = {
        key for configuration in summary.configurations for key in configuration.metrics if key.startswith("decode@")
    }
    contexts = sorted(int(key.partition("@")[2]) for key in keys)
    return [
        context
        for context in contexts
        if any(finite_decode(configuration, context) for configuration in summary.configurations)
    ]


def finite_decode(configuration: Configuration, context: int) -> bool:
    """Whether the speed at this context was measured."""
    return labels.finite(configuration.metrics.get(f"decode@{context}"))


def longest_context(summary: StudySummary) -> int | None:
    """The longest context at which the cache bytes of every configuration are known."""
    known = [set(configuration.cache_bytes) for configuration in summary.configurations]
    return max(set.intersection(*known), default=None) if known else None


def _ratio_line(
    series: Series, metric: str, ratios: list[str], shift: float, styles: dict[str, Style], dash: str
) -> dict[str, Any]:
    style = styles[series.mixer]
    values = [line.metrics[metric] for line in series.members]
    positions = [ratios.index(line.ratio) for line in series.members]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(set(positions)) == len(positions) else "markers",
        "x": [place + shift for place in positions],
        "y": [value.mean for value in values],
        "error_y": error_bars(values, style.colour),
        "line": {"color": style.colour, "width": 2, "dash": dash},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9},
        "customdata": [hover(line, [metric, *_settings(line, metric)]) for line in series.members],
        "hovertemplate": "%{customdata}<extra></extra>",
        "meta": {"mixer": series.mixer},
    }


def _band(transformer: Configuration, metric: str, width: int, styles: dict[str, Style]) -> list[dict[str, Any]]:
    value = transformer.metrics[metric]
    left, right = -0.5, width - 0.5
    meta = {"mixer": transformer.mixer, "role": "band"}
    line = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "meta": meta}
    return [
        {
            **line,
            "x": [left, right, right, left, left],
            "y": [value.low, value.low, value.high, value.high, value.low],
            "fill": "toself",
            "fillcolor": "ink-band",
            "line": {"width": 0},
        },
        {
            **line,
            "x": [left, right],
            "y": [value.mean, value.mean],
            "line": {"color": styles[transformer.mixer].colour, "width": 1, "dash": "dot"},
        },
    ]


def _settings(configuration: Configuration, metric: str) -> list[str]:
    """The settings behind a mean recall, the tasks behind the accuracy of a track."""
    return [key for key in configuration.metrics if key.startswith(f"{metric}@")]


def _ratio_tick(ratio: str, configurations: list[Configuration]) -> str:
    counts = {
        (configuration.n_full, configuration.n_linear + configuration.n_full)
        for configuration in configurations
        if configuration.ratio == ratio
    }
    below = [f"{full}/{total}" for full, total in sorted(counts)]
    return f"{escape(ratio)}<br><span style='font-size:11px'>{' '.join(below[:2])}</span>"


def _named(front: list[Configuration], context: int, width: float) -> set[str]:
    """Members of the front whose label has room; the one that recalls more goes first."""
    kept: list[tuple[float, float]] = []
    named = set()
    for configuration in reversed(front):
        place = math.log2(configuration.cache_bytes[context]), configuration.metrics["recall"].mean
        if all(abs(place[0] - x) > 0.1 * width or abs(place[1] - y) > 0.07 for x, y in kept):
            kept.append(place)
            named.add(configuration.key)
    return named


def byte_axis(smallest: float, largest: float) -> dict[str, Any]:
    """A logarithmic axis of bytes from ``smallest`` to ``largest``, with ticks at powers of two."""
    low, high = math.log2(smallest), math.log2(largest)
    margin = max(0.6, 0.1 * (high - low))
    first, last = math.ceil(low - margin), math.floor(high + margin)
    step = max(1, math.ceil((last - first) / 5))
    ticks = [2.0**power for power in range(first, last + 1, step)]
    return {
        "type": "log",
        "tickvals": ticks,
        "ticktext": [labels.byte_size(tick) for tick in ticks],
        "range": [math.log10(2) * (low - margin), math.log10(2) * (high + margin)],
    }


def _end_of_training(data: list[dict[str, Any]]) -> dict[str, Any]:
    """Range of a log axis that fits the curves after the first fifth of the steps, where they differ."""
    start = max(trace["x"][-1] for trace in data) / 5
    ends = [
        math.log10(loss) for trace in data for step, loss in zip(trace["x"], trace["y"], strict=True) if step >= start
    ]
    margin = 0.05 * (max(ends) - min(ends)) or 0.01
    return {"range": [min(ends) - margin, max(ends) + margin]}


def _mean_curve(curves: list[Curve]) -> list[tuple[int, float]]:
    """The mean loss at the steps that all curves have."""
    tables = [{step: loss for step, loss in curve.points if math.isfinite(loss) and loss > 0} for curve in curves]
    steps = sorted(set.intersection(*map(set, tables)))
    return [(step, sum(table[step] for table in tables) / len(tables)) for step in steps]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    if len(points) <= CURVE_POINTS:
        return points
    return [points[round(index * (len(points) - 1) / (CURVE_POINTS - 1))] for index in range(CURVE_POINTS)]


def _variant_dashes(series: list[Series]) -> dict[str, str]:
    """A dash for each thing that sets lines of one mixer apart."""
    variants = dict.fromkeys(line.variant for line in series)
    return {variant: list(DASHES)[index % len(DASHES)] for index, variant in enumerate(variants)}


def _described(start: str, series: list[Series], metric: str, styles: dict[str, Style]) -> str:
    lines = []
    for line in series:
        values = [f"{member.ratio} {labels.number(metric, member.metrics[metric].mean)}" for member in line.members]
        variant = f" ({line.variant})" if line.variant else ""
        lines.append(f"{styles[line.mixer].label}{variant}: {', '.join(values)}")
    return f"{start}. {'; '.join(lines)}."
