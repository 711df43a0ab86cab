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
    series = sorted(group(shown), key=lambda one: list(styles).index(one.mixer))
    lines = [one for one in series if not is_transformer(one.members[0])]
    dashes = _variant_dashes(lines)
    data: list[dict[str, Any]] = []
    for transformer in filter(is_transformer, shown):
        data += _band(transformer, metric, len(ratios), styles)
    for index, one in enumerate(lines):
        shift = 0.0 if len(lines) == 1 else 0.3 * (index / (len(lines) - 1) - 0.5)
        data.append(_ratio_line(one, metric, ratios, shift, styles, dashes[one.variant]))
    data += [_ratio_line(one, metric, ratios, 0.0, styles, "solid") for one in series if one not in lines]
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
    notes = [labels.interval_note((metric, one.metrics[metric]) for one in shown)]
    chance = next((one.metrics[metric].chance for one in shown if one.metrics[metric].chance is not None), None)
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
        values = [one.metrics[metric] for one in with_metric(summary.configurations, metric)]
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
    shown = [one for one in with_metric(summary.configurations, "recall") if one.cache_bytes.get(context, 0) > 0]
    if not shown:
        return None
    sizes = [one.cache_bytes[context] for one in shown]
    front = sorted((one for one in shown if one.key in summary.pareto), key=lambda one: one.cache_bytes[context])
    best = {one.key for one in front}
    named = _named(front, context, math.log2(max(sizes) / min(sizes)))
    data: list[dict[str, Any]] = []
    if front:
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "line": {"color": "muted", "width": 1.5, "shape": "hv"},
                "x": [one.cache_bytes[context] for one in front],
                "y": [one.metrics["recall"].mean for one in front],
                "hoverinfo": "skip",
                "meta": {"role": "front"},
            }
        )
    for mixer, style in styles.items():
        own = [one for one in shown if one.mixer == mixer]
        if not own:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [one.cache_bytes[context] for one in own],
                "y": [one.metrics["recall"].mean for one in own],
                "error_y": error_bars([one.metrics["recall"] for one in own], style.colour),
                "marker": {
                    "color": style.colour,
                    "symbol": style.symbol,
                    "size": [12 if one.key in best else 8 for one in own],
                    "opacity": 1,
                    "line": {"color": "paper", "width": 1},
                },
                "text": [escape(one.ratio) if one.key in named else "" for one in own],
                "textposition": "top left",
                "textfont": {"color": "ink", "size": 12},
                "cliponaxis": False,
                "customdata": [hover(one, [*answer_metrics(summary), "loss"], context) for one in own],
                "hovertemplate": "%{customdata}<extra></extra>",
                "meta": {"mixer": mixer},
            }
        )
    layout = base_layout(f"cache of one sequence at {labels.integer(context)} tokens (log)", "recall")
    layout["xaxis"] |= byte_axis(min(sizes), max(sizes))
    note = labels.interval_note(("recall", one.metrics["recall"]) for one in shown)
    if front:
        note = f"The line joins the Pareto front: no other configuration recalls as much with a smaller cache. {note}"
    points = "; ".join(
        f"{one.key} {labels.byte_size(one.cache_bytes[context])} {labels.number('recall', one.metrics['recall'].mean)}"
        for one in front
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
    known = {one.key: one for one in summary.configurations}
    shown = [known[key] for key in dict.fromkeys(curve.key for curve in curves) if key in known]
    if not shown:
        return None
    ratios = labels.ordered_ratios(shown)
    dashes = ratio_dashes(ratios)
    data: list[dict[str, Any]] = []
    for one in sorted(shown, key=lambda one: (list(styles).index(one.mixer), labels.ratio_order(one.ratio))):
        own = [curve for curve in curves if curve.key == one.key]
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
                "line": {"color": styles[one.mixer].colour, "width": 1.6, "dash": dashes[one.ratio]},
                "text": f"<b>{escape(one.key)}</b> ({seeds})",
                "hovertemplate": "%{text}<br>step %{x:,}: %{y:.3f}<extra></extra>",
                "meta": {"mixer": one.mixer, "ratio": one.ratio},
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
    shown = [one for one in summary.configurations if any(finite_decode(one, context) for context in contexts)]
    ratios = labels.ordered_ratios(shown)
    dashes = ratio_dashes(ratios)
    data: list[dict[str, Any]] = []
    for one in shown:
        style = styles[one.mixer]
        own = [context for context in contexts if finite_decode(one, context)]
        speeds = [one.metrics[f"decode@{context}"] for context in own]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": own,
                "y": [speed.mean for speed in speeds],
                "error_y": error_bars(speeds, style.colour),
                "line": {"color": style.colour, "width": 1.6, "dash": dashes[one.ratio]},
                "marker": {"color": style.colour, "symbol": style.symbol, "size": 7},
                "customdata": [hover(one, [f"decode@{context}"], context) for context in own],
                "hovertemplate": "%{customdata}<extra></extra>",
                "meta": {"mixer": one.mixer, "ratio": one.ratio},
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
    measured = [(one, context) for one in shown for context in contexts if finite_decode(one, context)]
    last = contexts[-1]
    return Chart(
        name="decode",
        axis="tokens/s, one sequence, higher is better",
        note=labels.interval_note(("decode", one.metrics[f"decode@{context}"]) for one, context in measured),
        description=f"Decoding speed against context. At {labels.integer(last)} tokens: "
        + "; ".join(
            f"{one.key} {labels.number('decode@', one.metrics[f'decode@{last}'].mean)} tokens/s"
            for one in shown
            if finite_decode(one, last)
        )
        + ".",
        data=data,
        layout=layout,
        legend=[*mixer_legend(shown, styles), *ratio_legend(ratios, dashes)],
    )


def decode_contexts(summary: StudySummary) -> list[int]:
    """Context lengths at which a decoding speed was measured, ascending."""
    keys = {key for one in summary.configurations for key in one.metrics if key.startswith("decode@")}
    contexts = sorted(int(key.partition("@")[2]) for key in keys)
    return [context for context in contexts if any(finite_decode(one, context) for one in summary.configurations)]


def finite_decode(configuration: Configuration, context: int) -> bool:
    """Whether the speed at this context was measured."""
    return labels.finite(configuration.metrics.get(f"decode@{context}"))


def longest_context(summary: StudySummary) -> int | None:
    """The longest context at which the cache bytes of every configuration are known."""
    known = [set(one.cache_bytes) for one in summary.configurations]
    return max(set.intersection(*known), default=None) if known else None


def _ratio_line(
    series: Series, metric: str, ratios: list[str], shift: float, styles: dict[str, Style], dash: str
) -> dict[str, Any]:
    style = styles[series.mixer]
    values = [one.metrics[metric] for one in series.members]
    places = [ratios.index(one.ratio) for one in series.members]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(set(places)) == len(places) else "markers",
        "x": [place + shift for place in places],
        "y": [value.mean for value in values],
        "error_y": error_bars(values, style.colour),
        "line": {"color": style.colour, "width": 2, "dash": dash},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 9},
        "customdata": [hover(one, [metric, *_settings(one, metric)]) for one in series.members],
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


def _settings(one: Configuration, metric: str) -> list[str]:
    """The settings behind a mean recall, the tasks behind the accuracy of a track."""
    return [key for key in one.metrics if key.startswith(f"{metric}@")]


def _ratio_tick(ratio: str, configurations: list[Configuration]) -> str:
    counts = {(one.n_full, one.n_linear + one.n_full) for one in configurations if one.ratio == ratio}
    below = [f"{full}/{total}" for full, total in sorted(counts)]
    return f"{escape(ratio)}<br><span style='font-size:11px'>{' '.join(below[:2])}</span>"


def _named(front: list[Configuration], context: int, width: float) -> set[str]:
    """Members of the front whose label has room; the one that recalls more goes first."""
    kept: list[tuple[float, float]] = []
    named = set()
    for one in reversed(front):
        place = math.log2(one.cache_bytes[context]), one.metrics["recall"].mean
        if all(abs(place[0] - x) > 0.1 * width or abs(place[1] - y) > 0.07 for x, y in kept):
            kept.append(place)
            named.add(one.key)
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
    variants = dict.fromkeys(one.variant for one in series)
    return {variant: list(DASHES)[index % len(DASHES)] for index, variant in enumerate(variants)}


def _described(start: str, series: list[Series], metric: str, styles: dict[str, Style]) -> str:
    lines = []
    for one in series:
        values = [f"{member.ratio} {labels.number(metric, member.metrics[metric].mean)}" for member in one.members]
        variant = f" ({one.variant})" if one.variant else ""
        lines.append(f"{styles[one.mixer].label}{variant}: {', '.join(values)}")
    return f"{start}. {'; '.join(lines)}."
