"""Writes a study's report: one HTML page that opens offline, the same as JSON, and a table as CSV."""

from __future__ import annotations

from pathlib import Path

import yaml

from plait.drawing.style import DASHES, SYMBOLS, Style, mixer_styles
from plait.files.writing import write_text
from plait.report import baselines, figures, labels
from plait.report.chart import Chart
from plait.report.load_charts import load_charts
from plait.report.metrics import metric_order, task_metrics
from plait.report.offline import fill
from plait.report.series import is_transformer
from plait.report.tables import csv_text, full_table
from plait.study.summary import Configuration, Guard, StudySummary


def write_report(summary: StudySummary, folder: Path) -> Path:
    """Write ``report.html``, ``report.json`` and ``report.csv``.

    Args:
        summary: what the study found.
        folder: where the files go; made if absent. Each file is replaced atomically.

    Returns:
        Path of ``report.html``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "report.json", summary.model_dump_json(indent=2) + "\n")
    write_text(folder / "report.csv", csv_text(summary))
    write_text(folder / "report.html", render(summary))
    return folder / "report.html"


def render(summary: StudySummary) -> str:
    """The page as text.

    Args:
        summary: what the study found.

    Returns:
        HTML that loads nothing from anywhere.
    """
    styles = mixer_styles(configuration.mixer for configuration in summary.configurations)
    context = figures.longest_context(summary)
    known = {metric for configuration in summary.configurations for metric in configuration.metrics}
    loss_metric = "bits_per_byte" if "bits_per_byte" in known else "loss"
    sections = {
        "loss": _present(figures.ratio_chart(summary, styles, loss_metric, "loss", better="lower is better")),
        "recall": _present(figures.ratio_chart(summary, styles, "recall", "recall", better="higher is better")),
        "load": load_charts(summary, styles),
        "pareto": _present(figures.pareto_chart(summary, styles, context)),
        "tasks": _present(*(_task_chart(summary, styles, metric) for metric in task_metrics(summary))),
        "curves": _present(*(figures.curve_chart(summary, styles, track) for track in _curve_tracks(summary))),
        "hits": figures.loss_charts(summary, styles),
        "decode": _present(figures.decode_chart(summary, styles)),
    }
    charts = [chart for group in sections.values() for chart in group]
    columns, rows = full_table(summary)
    mixers = {configuration.key: configuration.mixer for configuration in summary.configurations}
    return fill(
        "template.html.j2",
        charts,
        summary=summary,
        labels=labels,
        styles=styles,
        mixers=mixers,
        baselines=baselines,
        symbols=SYMBOLS,
        dashes=DASHES,
        sections=sections,
        missing=_missing(sections),
        why=_why(summary),
        void=_void(summary),
        pending=summary.trials - summary.finished - len(summary.failed),
        facts=_facts(summary, context, loss_metric),
        columns=columns,
        rows=rows,
        table_note=labels.interval_note(
            item for configuration in summary.configurations for item in configuration.metrics.items()
        ),
        verdicts=_verdicts(summary),
        seeds=_seeds(summary),
        study=yaml.safe_dump(summary.model_dump(mode="json")["study"], sort_keys=False, allow_unicode=True, width=100),
    )


def _task_chart(summary: StudySummary, styles: dict[str, Style], metric: str) -> Chart | None:
    track = metric.removeprefix("task:")
    name = f"task-{list(summary.tracks).index(track) if track in summary.tracks else track}"
    words = {"title": f"Track {track}", "better": "higher is better"}
    return figures.ratio_chart(summary, styles, metric, name, **words)


def _present(*charts: Chart | None) -> list[Chart]:
    return [chart for chart in charts if chart is not None]


def _curve_tracks(summary: StudySummary) -> list[str]:
    return list(dict.fromkeys([*summary.tracks, *(curve.track for curve in summary.curves)]))


def _missing(sections: dict[str, list[Chart]]) -> list[str]:
    """What this study did not measure, in words."""
    words = {
        "loss": "language modelling loss",
        "recall": "recall",
        "hits": "the split of the loss into AR hits and other tokens",
        "curves": "training curves",
        "decode": "decoding speed",
    }
    return [text for name, text in words.items() if not sections[name]]


def _why(summary: StudySummary) -> list[str]:
    """The sentences of the answer; a heading above them already says when there is no recommendation."""
    plain = [sentence.removeprefix("No recommendation: ") for sentence in summary.recommendation.sentences]
    return [sentence[:1].upper() + sentence[1:] for sentence in plain]


def _void(summary: StudySummary) -> list[Guard]:
    """Guards of tracks that prove nothing, unless the answer has said so."""
    said = " ".join(summary.recommendation.sentences).casefold()
    return [guard for guard in summary.guards if not guard.learnt and guard.message.casefold() not in said]


def _facts(summary: StudySummary, context: int | None, loss_metric: str) -> list[tuple[str, list[str]]]:
    """Rows of the small table beside the answer: the recommended configuration, and the transformer if there is one."""
    chosen = next(
        (configuration for configuration in summary.configurations if configuration.key == summary.recommendation.key),
        None,
    )
    if chosen is None:
        return []
    shown = [
        chosen,
        *(
            configuration
            for configuration in summary.configurations
            if is_transformer(configuration) and configuration is not chosen
        ),
    ][:2]
    facts = [
        ("", [configuration.key for configuration in shown]),
        ("Layers", [labels.layers(configuration) for configuration in shown]),
    ]
    facts.append(("Parameters", [_parameters(configuration) for configuration in shown]))
    if context is not None:
        row = [labels.byte_size(configuration.cache_bytes[context]) for configuration in shown]
        facts.append((f"Cache of one sequence at {labels.integer(context)} tokens", row))
    speeds = [metric for metric in metric_order(summary) if metric.startswith("decode@")]
    for metric in [loss_metric, "recall", *task_metrics(summary), *speeds[-1:]]:
        if all(labels.finite(configuration.metrics.get(metric)) for configuration in shown):
            name, unit = labels.metric_name(metric)
            cells = []
            for configuration in shown:
                value = configuration.metrics[metric]
                reach = labels.span(metric, value)
                cells.append(labels.number(metric, value.mean) + (f" ({reach})" if reach else ""))
            facts.append((f"{name}, {unit}", cells))
    return facts


def _parameters(configuration: Configuration) -> str:
    if len(set(configuration.parameters.values())) <= 1:
        return next((labels.count(number) for number in configuration.parameters.values()), labels.MISSING)
    return ", ".join(f"{labels.count(number)} ({track})" for track, number in configuration.parameters.items())


def _verdicts(summary: StudySummary) -> list[tuple[str, int]]:
    order = ["holds", "does not hold", "inconclusive"]
    return [(verdict, sum(claim.verdict == verdict for claim in summary.claims)) for verdict in order]


def _seeds(summary: StudySummary) -> dict[str, list[int]]:
    seeds: dict[str, set[int]] = {}
    for configuration in summary.configurations:
        for track, own in configuration.seeds.items():
            seeds.setdefault(track, set()).update(own)
    return {track: sorted(own) for track, own in seeds.items()}
