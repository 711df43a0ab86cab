"""One chart of a report as a plain SVG, for a README or a page of documentation."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from plait.errors import StudyError
from plait.report import labels
from plait.report.series import Series, group, is_transformer, with_metric
from plait.report.style import PALETTE, SYMBOLS, Style, mixer_styles
from plait.study.summary import Configuration, StudySummary

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 56, 200, 44, 62
_USED = ("ink", "ink-band", "muted", "grid", "paper")


def write_metric_svg(summary: StudySummary, path: Path, metric: str = "recall") -> Path:
    """Write :func:`metric_svg` to a file.

    Args:
        summary: the study.
        path: the file; its folder is made if absent.
        metric: as for :func:`metric_svg`.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(metric_svg(summary, metric), encoding="utf-8")
    return path


def metric_svg(summary: StudySummary, metric: str = "recall") -> str:
    """A metric against the ratio by mixer, with intervals and the transformer's band.

    The figure follows the light or dark theme of the reader's system, background included.

    Args:
        summary: the study.
        metric: key of ``Configuration.metrics``.

    Returns:
        An SVG document.

    Raises:
        StudyError: no configuration has the metric.
    """
    shown = with_metric(summary.configurations, metric)
    if not shown:
        known = sorted({name for one in summary.configurations for name in one.metrics})
        raise StudyError(
            f"Study {summary.name!r} measured no {metric!r}, so there is nothing to draw. "
            f"It measured: {', '.join(known) or 'nothing'}."
        )
    styles = mixer_styles(one.mixer for one in shown)
    ratios = labels.ordered_ratios(shown)
    name, unit = labels.metric_name(metric)
    ends = [end for one in shown for end in (one.metrics[metric].low, one.metrics[metric].high)]
    scale = _Scale(0.0, 1.0) if metric.startswith("recall") else _Scale(min(ends), max(ends))
    series = sorted(group(shown), key=lambda one: list(styles).index(one.mixer))
    parts = [f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}" rx="6"/>']
    parts += [f'<text class="title" x="{LEFT}" y="24">{escape(f"{name}, {unit}" if unit else name)}</text>']
    parts += _axes(scale, ratios, metric)
    parts += [_band(one, metric, scale) for one in shown if is_transformer(one)]
    lines = [one for one in series if not is_transformer(one.members[0])]
    for index, one in enumerate(lines):
        shift = 0.0 if len(lines) == 1 else 0.3 * (index / (len(lines) - 1) - 0.5)
        parts += _line(one, metric, scale, ratios, shift, styles[one.mixer])
    for one in series:
        if one not in lines:
            parts += _line(one, metric, scale, ratios, 0.0, styles[one.mixer])
    parts += _legend(styles)
    note = labels.interval_note((metric, one.metrics[metric]) for one in shown)
    parts.append(f'<text class="note" x="{LEFT}" y="{HEIGHT - 10}">{escape(note)}</text>')
    label = escape(f"{name} against ratio by mixer, study {summary.name}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{label}">\n<title>{label}</title>\n<style>{_css(styles)}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


class _Scale:
    """From values to pixels, with round ticks."""

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


def _x(place: float, count: int) -> float:
    return round(LEFT + (place + 0.5) * (WIDTH - LEFT - RIGHT) / count, 1)


def _axes(scale: _Scale, ratios: list[str], metric: str) -> list[str]:
    right = WIDTH - RIGHT
    parts = []
    for tick in scale.ticks:
        y = scale(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{right}"/>')
        text = labels.number(metric, tick) if metric.startswith("decode@") else f"{tick:.{scale.digits}f}"
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>')
    for place, ratio in enumerate(ratios):
        x = _x(place, len(ratios))
        parts.append(
            f'<text class="tick" x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(ratio)}</text>'
        )
    middle = (LEFT + right) / 2
    title = "linear layers per full layer"
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - BOTTOM + 36}" text-anchor="middle">{title}</text>')
    return parts


def _band(one: Configuration, metric: str, scale: _Scale) -> str:
    value = one.metrics[metric]
    top, bottom = scale(value.high), scale(value.low)
    width = WIDTH - LEFT - RIGHT
    return (
        f'<rect class="band" x="{LEFT}" y="{top}" width="{width}" height="{round(bottom - top, 1)}"/>'
        f'<path class="mean" d="M{LEFT} {scale(value.mean)}h{width}"/>'
    )


def _line(series: Series, metric: str, scale: _Scale, ratios: list[str], shift: float, style: Style) -> list[str]:
    points = [(_x(ratios.index(one.ratio) + shift, len(ratios)), one.metrics[metric]) for one in series.members]
    path = "L".join(f"{x} {scale(value.mean)}" for x, value in points)
    parts = [f'<g class="{style.colour}">']
    if len({x for x, _ in points}) == len(points) > 1:
        parts.append(f'<path class="line" d="M{path}"/>')
    for x, value in points:
        if value.over != "none":
            parts.append(f'<path class="bar" d="M{x} {scale(value.low)}V{scale(value.high)}"/>')
        y = scale(value.mean)
        parts.append(
            f'<path d="{SYMBOLS[style.symbol]}" transform="translate({round(x - 5, 1)} {round(y - 5, 1)}) scale(.83)"/>'
        )
    return [*parts, "</g>"]


def _legend(styles: dict[str, Style]) -> list[str]:
    parts = []
    for index, style in enumerate(styles.values()):
        y = TOP + 6 + 24 * index
        x = WIDTH - RIGHT + 20
        parts.append(
            f'<g class="{style.colour}"><path d="{SYMBOLS[style.symbol]}" transform="translate({x} {y - 6})"/></g>'
            f'<text class="name" x="{x + 20}" y="{y + 5}">{escape(style.label)}</text>'
        )
    return parts


def _css(styles: dict[str, Style]) -> str:
    roles = [*_USED, *(style.colour for style in styles.values() if style.colour not in _USED)]
    rules = (
        "text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}"
        ".title{font-weight:600;font-size:15px}.tick,.note{fill:var(--muted)}.note{font-size:11px}"
        ".paper{fill:var(--paper)}.grid{stroke:var(--grid)}.band{fill:var(--ink-band)}"
        ".mean{stroke:var(--ink);stroke-dasharray:2 3}.line{fill:none;stroke-width:2}.bar{stroke-width:1.4}"
    )
    used = dict.fromkeys(style.colour for style in styles.values())
    rules += "".join(
        f".{role}{{fill:var(--{role});stroke:none}}.{role} .line,.{role} .bar{{stroke:var(--{role})}}" for role in used
    )
    themes = {theme: "".join(f"--{role}:{colours[role]};" for role in roles) for theme, colours in PALETTE.items()}
    return f":root{{{themes['light']}}}@media(prefers-color-scheme:dark){{:root{{{themes['dark']}}}}}{rules}"
