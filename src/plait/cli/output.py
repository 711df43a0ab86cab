"""How every command prints: results on stdout, as aligned text or as JSON; progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer

#: How an interval was found -> what a reader should know of it.
INTERVALS = {
    "Wilson": "Wilson's interval of a proportion, where every sample is right or wrong",
    "bootstrap": "resampled means of the samples",
    "normal": "1.96 standard errors, as lm-eval gives them",
}


def interval_notes(methods: Iterable[str]) -> str:
    """One sentence on how the intervals of a table were found; empty where there are none."""
    used = set(methods)
    notes = [f"{method}: {note}" for method, note in INTERVALS.items() if method in used]
    return f"95 % intervals: {'; '.join(notes)}." if notes else ""


def print_json(data: Any) -> None:
    """Print ``data`` as JSON; a NaN or infinity is an error, since JSON has none."""
    typer.echo(json.dumps(data, indent=2, allow_nan=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows in aligned columns.

    Args:
        header: column titles.
        rows: one string a cell.
        right: indices of columns aligned to the right, for numbers.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        typer.echo("  ".join(cells).rstrip())


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
