"""The charts of a scaling study: loss, best size and best number of tokens against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plait.drawing.style import Style, ratio_dashes
from plait.report.chart import Chart, Legend, base_layout, escape
from plait.report.labels import ratio_order
from plait.study.scaling.summary import ArchitectureResult

#: Law -> title, what is measured upwards, and how a fitted value is written on hover.
WORDS = {
    "loss": ("Loss", "training loss in nats per token, log scale, lower is better", "%{y:.3f} nats"),
    "parameters": ("Best size", "parameters of the size with the lowest loss, log scale", "%{y:.3s} parameters"),
    "tokens": ("Best number of tokens", "tokens that this size has seen, log scale", "%{y:.3s} tokens"),
}
NOTE = "A line is a fit and ends where its envelope ends; nothing is drawn beyond."


def law_chart(shown: Sequence[ArchitectureResult], styles: Mapping[str, Style], law: str) -> Chart:
    """The envelope of each architecture, and its fit over the range of that envelope.

    Args:
        shown: architectures; one without a fit shows its envelope alone.
        styles: of their mixers.
        law: ``loss`` (with the curve of every size behind), ``parameters`` or ``tokens``.
    """
    dashes = ratio_dashes(sorted({architecture.ratio for architecture in shown}, key=ratio_order))
    title, axis, value = WORDS[law]
    data: list[dict[str, Any]] = []
    for architecture in shown:
        style, meta = styles[architecture.mixer], {"mixer": architecture.mixer, "ratio": architecture.ratio}
        if law == "loss":
            data += [_curve(architecture, size.size, size.curve, style, meta) for size in architecture.sizes]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [point.flops for point in architecture.envelope],
                "y": [getattr(point, law) for point in architecture.envelope],
                "marker": {"color": style.colour, "symbol": style.symbol, "size": 8},
                "customdata": [f"width {point.size}" for point in architecture.envelope],
                "hovertemplate": f"<b>{escape(architecture.key)}</b>, %{{customdata}}<br>"
                f"%{{x:.3s}}FLOP: {value}<extra></extra>",
                "meta": meta,
            }
        )
        if architecture.laws:
            fit, ends = architecture.laws[law], [architecture.low, architecture.high]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": ends,
                    "y": [fit.coefficient * end**fit.exponent for end in ends],
                    "line": {"color": style.colour, "width": 2, "dash": dashes[architecture.ratio]},
                    "hovertemplate": f"<b>{escape(architecture.key)}</b>, fit<br>"
                    f"%{{x:.3s}}FLOP: {value}<extra></extra>",
                    "meta": meta,
                }
            )
    layout = base_layout("training FLOPs without embedding and head, log scale", "")
    layout["xaxis"] |= {"type": "log", "tickformat": ".0e", "dtick": 1}
    layout["yaxis"] |= {"type": "log", "tickformat": ".3~g" if law == "loss" else ".2~s", "nticks": 7}
    thin = " Thin lines are single sizes." if law == "loss" else ""
    return Chart(
        name=law,
        title=title,
        axis=axis,
        note=f"Markers are the envelope: in each bin of compute the size with the lowest loss.{thin} {NOTE}",
        description=f"{title} against training compute for {len(shown)} architectures.",
        data=data,
        layout=layout,
        legend=_legend(shown, styles, dashes),
    )


def _curve(
    architecture: ArchitectureResult,
    size: str,
    points: Sequence[tuple[float, float]],
    style: Style,
    meta: dict[str, str],
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [flops for flops, _ in points],
        "y": [loss for _, loss in points],
        "line": {"color": style.colour, "width": 0.8},
        "opacity": 0.5,
        "hovertemplate": f"{escape(architecture.key)}, width {size}<br>%{{x:.3s}}FLOP: %{{y:.3f}} nats<extra></extra>",
        "meta": meta,
    }


def _legend(
    shown: Sequence[ArchitectureResult], styles: Mapping[str, Style], dashes: Mapping[str, str]
) -> list[Legend]:
    present = {architecture.mixer for architecture in shown}
    mixers = [
        Legend("mixer", mixer, style.label, style.colour, style.symbol)
        for mixer, style in styles.items()
        if mixer in present
    ]
    ratios = sorted({architecture.ratio for architecture in shown}, key=ratio_order)
    return mixers + [Legend("ratio", ratio, ratio, "muted", dash=dashes[ratio]) for ratio in ratios]
