"""Writes the report of a scaling study: an HTML page that opens offline, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from plait.drawing.style import DASHES, PALETTE, SYMBOLS, mixer_styles
from plait.report import labels
from plait.report.scaling_charts import WORDS, law_chart
from plait.study.scaling import table
from plait.study.scaling.summary import ScalingSummary
from plait.training.checkpoint import write_json


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
    partial = page.with_name(f".partial-{page.name}")
    partial.write_text(render(summary), encoding="utf-8")
    partial.replace(page)
    return page


def render(summary: ScalingSummary) -> str:
    """The page as text.

    Args:
        summary: what the study found.

    Returns:
        HTML that loads nothing from anywhere.
    """
    styles = mixer_styles(one.mixer for one in summary.architectures)
    charts = [law_chart(summary.architectures, styles, law) for law in WORDS]
    environment = Environment(
        loader=PackageLoader("plait", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    drawn = [{"name": chart.name, "data": chart.data, "layout": chart.layout} for chart in charts]
    payload = json.dumps({"palette": PALETTE, "charts": drawn}, allow_nan=False)
    for character in "<>&":  # JSON that cannot end the script element that holds it
        payload = payload.replace(character, f"\\u{ord(character):04x}")
    return environment.get_template("scaling.html.j2").render(
        summary=summary,
        labels=labels,
        charts=charts,
        header=table.HEADER,
        rows=table.rows(summary),
        notes=table.notes(summary),
        symbols=SYMBOLS,
        dashes=DASHES,
        palette=PALETTE,
        file=yaml.safe_dump(summary.scaling, sort_keys=False, allow_unicode=True, width=100),
        style=Markup(loader.get_source(environment, "style.css")[0]),
        script=Markup(loader.get_source(environment, "script.js")[0]),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        payload=Markup(payload),
    )
