"""One chart of a report as a plain SVG, for a README or a page of documentation."""

from __future__ import annotations

from pathlib import Path

from plait.drawing.style import Style, mixer_styles
from plait.drawing.svg_parts import LEFT, RIGHT, WIDTH, Scale, axes, document, footnote, heading, legend, marks, place
from plait.errors import StudyError
from plait.files.writing import write_text
from plait.report import labels
from plait.report.series import Series, group, is_transformer, with_metric
from plait.study.summary import Configuration, StudySummary


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
    write_text(path, metric_svg(summary, metric))
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
        known = sorted({name for configuration in summary.configurations for name in configuration.metrics})
        raise StudyError(
            f"Study {summary.name!r} measured no {metric!r}, so there is nothing to draw. "
            f"It measured: {', '.join(known) or 'nothing'}."
        )
    styles = mixer_styles(configuration.mixer for configuration in shown)
    ratios = labels.ordered_ratios(shown)
    name, unit = labels.metric_name(metric)
    ends = [
        end
        for configuration in shown
        for end in (configuration.metrics[metric].low, configuration.metrics[metric].high)
    ]
    scale = Scale(0.0, 1.0) if metric.startswith("recall") else Scale(min(ends), max(ends))
    series = sorted(group(shown), key=lambda line: list(styles).index(line.mixer))
    parts = [heading(f"{name}, {unit}" if unit else name)]
    parts += axes(scale, _ticks(scale, metric), ratios, "linear layers per full layer")
    parts += [_band(configuration, metric, scale) for configuration in shown if is_transformer(configuration)]
    lines = [line for line in series if not is_transformer(line.members[0])]
    for index, line in enumerate(lines):
        shift = 0.0 if len(lines) == 1 else 0.3 * (index / (len(lines) - 1) - 0.5)
        parts += _line(line, metric, scale, ratios, shift, styles[line.mixer])
    for line in series:
        if line not in lines:
            parts += _line(line, metric, scale, ratios, 0.0, styles[line.mixer])
    parts += legend(styles.values())
    parts.append(footnote(labels.interval_note((metric, configuration.metrics[metric]) for configuration in shown)))
    return document(f"{name} against ratio by mixer, study {summary.name}", styles.values(), parts)


def _ticks(scale: Scale, metric: str) -> list[str]:
    if metric.startswith("decode@"):
        return [labels.number(metric, tick) for tick in scale.ticks]
    return [f"{tick:.{scale.digits}f}" for tick in scale.ticks]


def _band(configuration: Configuration, metric: str, scale: Scale) -> str:
    value = configuration.metrics[metric]
    top, bottom = scale(value.high), scale(value.low)
    width = WIDTH - LEFT - RIGHT
    return (
        f'<rect class="band" x="{LEFT}" y="{top}" width="{width}" height="{round(bottom - top, 1)}"/>'
        f'<path class="mean" d="M{LEFT} {scale(value.mean)}h{width}"/>'
    )


def _line(series: Series, metric: str, scale: Scale, ratios: list[str], shift: float, style: Style) -> list[str]:
    points = [
        (
            place(ratios.index(configuration.ratio) + shift, len(ratios)),
            scale((value := configuration.metrics[metric]).mean),
            None if value.over == "none" else (scale(value.low), scale(value.high)),
        )
        for configuration in series.members
    ]
    return marks(points, style, joined=len({x for x, _, _ in points}) == len(points))
