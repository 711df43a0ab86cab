"""Writes the report of a scaling study: an HTML page that opens offline, and the same as JSON."""

from __future__ import annotations

from pathlib import Path

import yaml

from plait.drawing.style import DASHES, SYMBOLS, mixer_styles
from plait.files.writing import write_json, write_text
from plait.report import labels
from plait.report.offline import fill
from plait.report.scaling_charts import WORDS, law_chart
from plait.study.scaling import table
from plait.study.scaling.summary import ScalingSummary


def write_page(summary: ScalingSummary, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json``.

    Args:
        summary: what the study found.
        folder: where the files go.

    Returns:
        Path of ``report.html``.
    """
    write_json(folder / "report.json", summary.model_dump(mode="json"))
    page = folder / "report.html"
    write_text(page, render(summary))
    return page


def render(summary: ScalingSummary) -> str:
    """The page as text.

    Args:
        summary: what the study found.

    Returns:
        HTML that loads nothing from anywhere.
    """
    styles = mixer_styles(architecture.mixer for architecture in summary.architectures)
    charts = [law_chart(summary.architectures, styles, law) for law in WORDS]
    return fill(
        "scaling.html.j2",
        charts,
        summary=summary,
        labels=labels,
        header=table.HEADER,
        rows=table.rows(summary),
        notes=table.notes(summary),
        symbols=SYMBOLS,
        dashes=DASHES,
        file=yaml.safe_dump(summary.scaling, sort_keys=False, allow_unicode=True, width=100),
    )
