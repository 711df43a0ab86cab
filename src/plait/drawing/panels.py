"""Panels side by side that share the vertical axis: one score against several measured costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from plait.drawing.lines import line_styles
from plait.drawing.style import SYMBOLS, Style
from plait.drawing.svg_parts import HEIGHT, LEFT, TOP, Scale, document
from plait.statistics.interval import Interval

WIDE, GAP, LEGEND, BELOW = 240, 44, 170, 70


@dataclass(frozen=True)
class Mark:
    """One measured point.

    Args:
        at: the cost, by panel; None where it was not measured.
        value: the score with its interval.
        said: a sentence that appears where the reader points at it.
    """

    at: Sequence[float | None]
    value: Interval
    said: str


@dataclass(frozen=True)
class Trace:
    """The points of one thing, joined in their order.

    Args:
        name: in the legend.
        marks: its points.
        baseline: drawn in ink, with a line across each panel at its score.
    """

    name: str
    marks: Sequence[Mark]
    baseline: bool = False


@dataclass(frozen=True)
class Panels:
    """One row of panels.

    Args:
        title: what the row shows.
        axis: a sentence on both axes.
        costs: what each panel's horizontal axis is.
        traces: the series.
        label: what the figure shows, as a sentence for readers who cannot see it.
    """

    title: str
    axis: str
    costs: Sequence[str]
    traces: Sequence[Trace]
    label: str


def panels_svg(figure: Panels) -> str:
    """Draw the panels as an SVG document that follows the reader's light or dark theme; scores lie in 0 to 1."""
    scale = Scale(0.0, 1.0)
    styles = line_styles([(trace.name, trace.baseline) for trace in figure.traces])
    width = LEFT + len(figure.costs) * (WIDE + GAP) + LEGEND
    parts = [f'<text class="title" x="{LEFT}" y="24">{escape(figure.title)}</text>']
    for tick in scale.ticks:
        y = scale(tick)
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:.2f}</text>')
    for index, cost in enumerate(figure.costs):
        parts += _panel(figure, index, cost, scale, styles)
    x = LEFT + len(figure.costs) * (WIDE + GAP)
    for index, style in enumerate(styles):
        y = TOP + 6 + 24 * index
        parts.append(
            f'<g class="{style.colour}"><path d="{SYMBOLS[style.symbol]}" transform="translate({x} {y - 6})"/></g>'
            f'<text class="name" x="{x + 20}" y="{y + 5}">{escape(style.label)}</text>'
        )
    note = f"{figure.axis} Bars are 95 % intervals."
    parts.append(f'<text class="note" x="{LEFT}" y="{HEIGHT - 10}">{escape(note)}</text>')
    return document(figure.label, styles, parts, width)


def _panel(figure: Panels, index: int, cost: str, scale: Scale, styles: Sequence[Style]) -> list[str]:
    left = LEFT + index * (WIDE + GAP)
    found = [mark.at[index] for trace in figure.traces for mark in trace.marks]
    costs = [value for value in found if value is not None]
    highest = max(costs, default=1.0)
    top = 1.0 if highest <= 1.02 else math.ceil(highest / 0.5 - 1e-9) * 0.5

    def place(value: float) -> float:
        return round(left + 8 + value / top * (WIDE - 16), 1)

    parts = [f'<path class="grid" d="M{left} {scale(tick)}h{WIDE}"/>' for tick in scale.ticks]
    bottom = HEIGHT - BELOW
    step = 0.25 if top == 1 else 0.5 if top <= 3 else top / 4
    for number in range(round(top / step) + 1):
        x = place(number * step)
        parts.append(f'<path class="grid" d="M{x} {bottom}v5"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 18}" text-anchor="middle">{number * step:.0%}</text>')
    middle = left + WIDE / 2
    parts.append(f'<text class="tick" x="{middle}" y="{bottom + 36}" text-anchor="middle">{escape(cost)}</text>')
    if not costs:
        parts.append(
            f'<text class="tick" x="{middle}" y="{scale(0.5)}" text-anchor="middle">nothing to measure here</text>'
        )
    for trace, style in zip(figure.traces, styles, strict=True):
        parts.append(f'<g class="{style.colour}">')
        shown = [(mark, place(at)) for mark in trace.marks if (at := mark.at[index]) is not None]
        if trace.baseline and shown:
            parts.append(
                f'<path class="bar" stroke-dasharray="2 3" d="M{left} {scale(shown[0][0].value.mean)}h{WIDE}"/>'
            )
        elif len(shown) > 1:
            parts.append(f'<path class="line" d="M{"L".join(f"{x} {scale(m.value.mean)}" for m, x in shown)}"/>')
        for mark, x in shown:
            low, high, y = scale(mark.value.low), scale(mark.value.high), scale(mark.value.mean)
            parts.append(
                f'<g><title>{escape(mark.said)}</title><path class="bar" d="M{x} {low}V{high}"/>'
                f'<path d="{SYMBOLS[style.symbol]}" transform="translate({round(x - 5, 1)} {round(y - 5, 1)}) '
                'scale(.83)"/></g>'
            )
        parts.append("</g>")
    return parts
