"""What a hand-made SVG chart needs: its frame, a scale with round ticks, colours that follow the reader's theme."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

from plait.drawing.style import PALETTE, SYMBOLS, Style

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 200, 44, 62
_USED = ("ink", "ink-band", "muted", "grid", "paper")


class Scale:
    """From values to pixels of the vertical axis, with round ticks.

    Args:
        low, high: the values to be shown.
    """

    def __init__(self, low: float, high: float) -> None:
        reach = (high - low) or abs(high) or 1.0
        power = 10.0 ** math.floor(math.log10(reach / 4))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if reach / (power * factor) <= 5)
        if (low, high) == (0.0, 1.0):
            step = 0.25
        self.low, self.high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if self.low == self.high:
            self.high += step
        self.digits = max(0, next(digits for digits in range(12) if math.isclose(round(step, digits), step)))
        self.ticks = [self.low + index * step for index in range(round((self.high - self.low) / step) + 1)]

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def place(index: float, count: int) -> float:
    """Pixel of category ``index`` of ``count`` on the horizontal axis."""
    return round(LEFT + (index + 0.5) * (WIDTH - LEFT - RIGHT) / count, 1)


def document(
    label: str, styles: Iterable[Style], parts: Iterable[str], width: int = WIDTH, height: int = HEIGHT
) -> str:
    """An SVG document on paper that follows the light or dark theme of the reader's system.

    Args:
        label: what the figure shows, for readers who cannot see it.
        styles: whose colours the parts use as classes.
        parts: elements.
        width, height: pixels.
    """
    label = escape(label)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}">\n<title>{label}</title>\n<style>{_css(styles)}</style>\n'
        + "\n".join([f'<rect class="paper" width="{width}" height="{height}" rx="6"/>', *parts])
        + "\n</svg>\n"
    )


def axes(scale: Scale, ticks: Iterable[str], categories: list[str], title: str) -> list[str]:
    """Grid lines with their values, the categories below them, and what the categories are.

    Args:
        scale: of the vertical axis.
        ticks: texts of ``scale.ticks``.
        categories: from left to right.
        title: of the horizontal axis.
    """
    right = WIDTH - RIGHT
    parts = []
    for value, text in zip(scale.ticks, ticks, strict=True):
        y = scale(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(text)}</text>')
    for index, category in enumerate(categories):
        x = place(index, len(categories))
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(category)}</text>'
        )
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="tick" x="{middle}" y="{HEIGHT - BOTTOM + 36}" text-anchor="middle">{escape(title)}</text>'
    )
    return parts


def marks(points: Iterable[tuple[float, float, tuple[float, float] | None]], style: Style, joined: bool) -> list[str]:
    """Symbols with their intervals, joined by a line where asked.

    Args:
        points: pixel, pixel, and the pixels of the interval's ends or None.
        style: colour and symbol.
        joined: draw a line through them.
    """
    points = list(points)
    parts = [f'<g class="{style.colour}">']
    if joined and len(points) > 1:
        parts.append(f'<path class="line" d="M{"L".join(f"{x} {y}" for x, y, _ in points)}"/>')
    for x, y, ends in points:
        if ends is not None:
            parts.append(f'<path class="bar" d="M{x} {ends[0]}V{ends[1]}"/>')
        parts.append(
            f'<path d="{SYMBOLS[style.symbol]}" transform="translate({round(x - 5, 1)} {round(y - 5, 1)}) scale(.83)"/>'
        )
    return [*parts, "</g>"]


def legend(styles: Iterable[Style]) -> list[str]:
    """A symbol and a name for each style, to the right of the chart."""
    parts = []
    for index, style in enumerate(styles):
        y = TOP + 6 + 24 * index
        x = WIDTH - RIGHT + 20
        parts.append(
            f'<g class="{style.colour}"><path d="{SYMBOLS[style.symbol]}" transform="translate({x} {y - 6})"/></g>'
            f'<text class="name" x="{x + 20}" y="{y + 5}">{escape(style.label)}</text>'
        )
    return parts


def heading(text: str) -> str:
    """What is measured, above the chart."""
    return f'<text class="title" x="{LEFT}" y="24">{escape(text)}</text>'


def footnote(text: str) -> str:
    """A remark below the chart."""
    return f'<text class="note" x="{LEFT}" y="{HEIGHT - 10}">{escape(text)}</text>'


def _css(styles: Iterable[Style]) -> str:
    used = dict.fromkeys(style.colour for style in styles)
    roles = [*_USED, *(role for role in used if role not in _USED)]
    rules = (
        "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}"
        ".title{font-weight:600;font-size:15px}.tick,.note{fill:var(--muted)}.note{font-size:11px}"
        ".paper{fill:var(--paper)}.grid{stroke:var(--grid)}.band{fill:var(--ink-band)}"
        ".mean{stroke:var(--ink);stroke-dasharray:2 3}.line{fill:none;stroke-width:2}.bar{stroke-width:1.4}"
    )
    rules += "".join(
        f".{role}{{fill:var(--{role});stroke:none}}.{role} .line,.{role} .bar{{stroke:var(--{role})}}" for role in used
    )
    themes = {theme: "".join(f"--{role}:{colours[role]};" for role in roles) for theme, colours in PALETTE.items()}
    return f":root{{{themes['light']}}}@media(prefers-color-scheme:dark){{:root{{{themes['dark']}}}}}{rules}"
