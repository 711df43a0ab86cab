"""Measured lines with intervals as a plain SVG: the figure of a claim, a probe or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.drawing.style import PALETTE, SYMBOLS, Style
from plait.drawing.svg_parts import Scale, axes, document, footnote, heading, legend, marks, place
from plait.statistics.interval import Interval


@dataclass(frozen=True)
class Line:
    """One series.

    Args:
        name: in the legend.
        values: an interval for each category of the figure; None where nothing was measured.
        joined: draw a line through the values; False for single marks.
        baseline: drawn in ink, as what the others are compared with.
    """

    name: str
    values: Sequence[Interval | None]
    joined: bool = True
    baseline: bool = False


@dataclass(frozen=True)
class LinesFigure:
    """A chart of one quantity against categories.

    Args:
        title: the quantity with its unit.
        categories: texts below the horizontal axis, from left to right.
        axis: what the categories are.
        lines: the series, at most eight.
        label: what the figure shows, as a sentence for readers who cannot see it.
        bounds: range of the quantity where it has one, such as (0, 1).
    """

    title: str
    categories: Sequence[str]
    axis: str
    lines: Sequence[Line]
    label: str
    bounds: tuple[float, float] | None = None


def lines_svg(figure: LinesFigure) -> str:
    """Draw a figure as an SVG document that follows the reader's light or dark theme.

    Raises:
        ValueError: a line has not one value a category, or no line has any value.
    """
    for line in figure.lines:
        if len(line.values) != len(figure.categories):
            raise ValueError(f"{line.name}: {len(line.values)} values for {len(figure.categories)} categories.")
    measured = [value for line in figure.lines for value in line.values if value is not None]
    if not measured:
        raise ValueError("The figure has no value.")
    ends = figure.bounds or (min(value.low for value in measured), max(value.high for value in measured))
    scale = Scale(*ends)
    styles = line_styles([(line.name, line.baseline) for line in figure.lines])
    parts = [heading(figure.title)]
    parts += axes(scale, [f"{tick:.{scale.digits}f}" for tick in scale.ticks], list(figure.categories), figure.axis)
    compared = [line for line in figure.lines if not line.baseline]
    for line, style in zip(figure.lines, styles, strict=True):
        apart = len(compared) > 1 and not line.baseline
        shift = 0.3 * (compared.index(line) / (len(compared) - 1) - 0.5) if apart else 0.0
        points = [
            (
                place(position + shift, len(figure.categories)),
                scale(value.mean),
                None if value.over == "none" else (scale(value.low), scale(value.high)),
            )
            for position, value in enumerate(line.values)
            if value is not None
        ]
        parts += marks(points, style, line.joined)
    parts += legend(styles)
    if any(value.over != "none" for value in measured):
        parts.append(footnote("Bars are 95 % intervals."))
    return document(figure.label, styles, parts)


def line_styles(lines: Sequence[tuple[str, bool]]) -> list[Style]:
    """A style for each line: colour and symbol of its own, ink for a baseline.

    Args:
        lines: name of each line, and whether it is a baseline.
    """
    colours = [role for role in PALETTE["light"] if role.startswith("mixer-")]
    symbols = [symbol for symbol in SYMBOLS if symbol != "x"]
    styles = []
    others = 0
    for name, baseline in lines:
        if baseline:
            styles.append(Style("ink", "x", name))
        else:
            styles.append(Style(colours[others % len(colours)], symbols[others % len(symbols)], name))
            others += 1
    return styles
