"""A table of numbers as a plain SVG heat map: layers against heads, depths against lengths."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from plait.drawing.style import Style
from plait.drawing.svg_parts import document, heading

LEFT, TOP, RIGHT, BOTTOM = 56, 44, 16, 42
LARGEST, SMALLEST = 44, 10
_STYLE = Style("mixer-0", "square", "")


def heat_svg(
    values: Sequence[Sequence[float]], title: str, *, rows: str, columns: str, high: float | None = None
) -> str:
    """Draw ``values[row][column]``, from paper at 0 to full colour at ``high``; the numbers stand in large cells.

    Args:
        values: all rows of one length, no number negative.
        title: what is shown.
        rows, columns: what the rows and columns are.
        high: value of the full colour; the largest of the table by default.

    Raises:
        ValueError: no value, rows of different lengths, or a negative number.
    """
    if not values or not values[0] or len({len(row) for row in values}) > 1:
        raise ValueError("A heat map needs rows of one length.")
    if min(min(row) for row in values) < 0:
        raise ValueError("A heat map shows numbers of at least 0.")
    top = high or max(max(row) for row in values) or 1.0
    cell = max(SMALLEST, min(LARGEST, 640 // len(values[0]), 640 // len(values)))
    width = max(360, LEFT + cell * len(values[0]) + RIGHT)
    height = TOP + cell * len(values) + BOTTOM
    parts = [heading(title)]
    for row, numbers in enumerate(values):
        y = TOP + row * cell
        if row % max(1, 16 // cell) == 0:
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{row}</text>')
        for column, number in enumerate(numbers):
            x, share = LEFT + column * cell, min(1.0, number / top)
            text = f"{rows} {row}, {columns} {column}: {number:.3g}"
            parts.append(
                f'<rect class="{_STYLE.colour}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{share:.3f}"><title>{escape(text)}</title></rect>'
            )
            if cell >= 36:
                parts.append(
                    f'<text class="tick" x="{x + cell / 2}" y="{y + cell / 2 + 4}" '
                    f'text-anchor="middle">{number:.2f}</text>'
                )
    step = max(1, 24 // cell)
    for column in range(0, len(values[0]), step):
        middle = LEFT + (column + 0.5) * cell
        parts.append(
            f'<text class="tick" x="{middle}" y="{TOP + cell * len(values) + 16}" text-anchor="middle">{column}</text>'
        )
    parts.append(
        f'<text class="tick" x="{LEFT}" y="{height - 8}">{escape(columns)} from left, {escape(rows)} from top</text>'
    )
    return document(title, [_STYLE], parts, width=width, height=height)
