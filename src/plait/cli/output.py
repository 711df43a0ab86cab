"""How every command prints: results on stdout, as aligned text or as JSON; progress on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import typer

#: How an interval was found -> what a reader should know of it.
INTERVALS = {
    "Wilson": "for a share of samples, each right or wrong",
    "bootstrap": "from resampled means of the samples",
    "normal": "1.96 standard errors to each side, as lm-eval gives them",
    "range": "the slowest and the fastest repeat",
}


def interval_notes(methods: Iterable[str]) -> str:
    """One sentence on how the intervals of a table were found; empty where there are none."""
    used = set(methods)
    notes = [f"{method}: {note}" for method, note in INTERVALS.items() if method in used]
    return f"95 % intervals by method. {'; '.join(notes)}." if notes else ""


def print_json(data: Any) -> None:
    """Print ``data`` as JSON; a NaN or infinity is an error, since JSON has none."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def terminal_width() -> int | None:
    """Columns of the terminal, or of ``COLUMNS``; None where the output goes to a file or a pipe, which has no edge."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return int(columns)
    return shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None


def say(text: str = "", label: str = "") -> None:
    """Print text whose lines are broken between words where the terminal ends.

    Args:
        text: one or more lines; a line that begins with spaces goes on with as many.
        label: stands before the first line; the others are indented as far.
    """
    width, indent = terminal_width(), " " * len(label)
    for number, line in enumerate(text.split("\n")):
        before = indent if number else label
        if width is None or len(before) + len(line) <= width:
            typer.echo((before + line).rstrip())
            continue
        hanging = indent + " " * (len(line) - len(line.lstrip()))
        for part in _broken(before + line, width, hanging):
            typer.echo(part)


def _broken(line: str, width: int, hanging: str = "") -> list[str]:
    """A line in parts of at most ``width`` columns; a word that is longer, such as a path, stays whole."""
    return textwrap.wrap(
        line,
        max(width, len(hanging) + 1),
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    ) or [""]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows in aligned columns.

    Where the terminal is too narrow, long texts are broken between words; a table whose numbers alone are too wide is
    printed in parts, one below the other, that all begin with the first column.

    Args:
        header: column titles.
        rows: one string a cell.
        right: indices of columns aligned to the right, for numbers.
    """
    columns = [list(column) for column in zip(header, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    width = terminal_width()
    parts = [list(range(len(columns)))]
    if width is not None and _total(widths) > width:
        narrowed = _narrowed(columns, widths, right, width)
        if _total(narrowed) <= width:
            widths = narrowed
        else:
            widths[0] = min(widths[0], max(width // 2, *map(len, " ".join(columns[0]).split())))
            parts = _parts(widths, width)
    for number, part in enumerate(parts):
        if number:
            typer.echo()
        for row in range(len(rows) + 1):
            cells = [columns[index][row] for index in part]
            if not number or any(cells[1:]):
                _print_row(cells, [widths[index] for index in part], part, right)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _narrowed(columns: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[int], width: int) -> list[int]:
    """``widths`` with what is more than ``width`` taken from the widest columns of text, down to their longest word."""
    widths = list(widths)
    least = [max(len(word) for cell in column for word in [*cell.split(), ""]) for column in columns]
    texts = [index for index in range(len(widths)) if index not in right]
    while _total(widths) > width:
        able = [index for index in texts if widths[index] > max(least[index], 12)]
        if not able:
            break
        widths[max(able, key=lambda index: widths[index])] -= 1
    return widths


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of the columns of each part of a table."""
    parts, used = [[0]], widths[0]
    for index in range(1, len(widths)):
        if used + 2 + widths[index] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(index)
        used += 2 + widths[index]
    return parts


def _print_row(cells: Sequence[str], widths: Sequence[int], indices: Sequence[int], right: Sequence[int]) -> None:
    broken = [[cell] if len(cell) <= width else _broken(cell, width) for cell, width in zip(cells, widths, strict=True)]
    for line in range(max(map(len, broken))):
        texts = [parts[line] if line < len(parts) else "" for parts in broken]
        aligned = (
            text.rjust(width) if index in right else text.ljust(width)
            for text, width, index in zip(texts, widths, indices, strict=True)
        )
        typer.echo("  ".join(aligned).rstrip())


def quantity(value: float, unit: str = "") -> str:
    """``value`` with three digits and a metric prefix: ``quantity(1.65e12, "FLOP")`` is ``"1.65 TFLOP"``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def size(value: int) -> str:
    """``value`` bytes with a binary prefix: ``size(786432)`` is ``"768 KiB"``."""
    for factor, prefix in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= factor:
            return f"{value / factor:.4g} {prefix}"
    return f"{value} B"
