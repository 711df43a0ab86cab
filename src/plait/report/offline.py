"""Pages that open offline: a template filled in, with its style, its script, plotly and the figures inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from plait.drawing.style import PALETTE
from plait.report.chart import Chart


def fill(template: str, charts: Sequence[Chart], **values: Any) -> str:
    """The page as text; it loads nothing from anywhere.

    Args:
        template: name of the file beside this one.
        charts: its interactive figures.
        values: what the template asks for beside charts, palette, style, script, plotly and payload.
    """
    loader = PackageLoader("plait", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = [{"name": chart.name, "data": chart.data, "layout": chart.layout} for chart in charts]
    return environment.get_template(template).render(
        **values,
        charts=charts,
        palette=PALETTE,
        style=Markup(loader.get_source(environment, "style.css")[0]),
        script=Markup(loader.get_source(environment, "script.js")[0]),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
        payload=Markup(_script_json({"palette": PALETTE, "charts": drawn})),
    )


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
