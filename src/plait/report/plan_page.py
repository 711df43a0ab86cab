"""The page of a plan: the front drawn, every plan that fits in a table; one file that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.drawing.style import SYMBOLS, Style, mixer_styles
from plait.files.writing import write_text
from plait.planner.candidates import Candidate
from plait.planner.request import Plan
from plait.report import labels
from plait.report.chart import Chart, Legend, base_layout, escape
from plait.report.figures import byte_axis
from plait.report.offline import fill

#: Headings of the table, and whether their cells are numbers.
COLUMNS = [
    ("Plan", False),
    ("Memory", True),
    ("Tokens/s", True),
    ("Recall", True),
    ("Source of recall", False),
    ("Full layers", True),
    ("Parameters", True),
    ("Weights", True),
    ("Cache that grows", True),
    ("Windows, bounded", True),
    ("States, constant", True),
    ("Working", True),
    ("Bytes moved per step", True),
    ("Prefill GFLOP", True),
    ("Bound by", False),
]


def write_page(plan: Plan, path: Path, command: str, everything: bool = False) -> Path:
    """Write the page.

    Args:
        plan: what is shown.
        path: the file; its folder is made if absent.
        command: that made it, printed on the page.
        everything: whether the table holds plans that another one beats.

    Returns:
        The path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render(plan, command, everything))
    return path


def render(plan: Plan, command: str, everything: bool = False) -> str:
    """The page as text; it loads nothing from anywhere."""
    styles = mixer_styles(candidate.mixer for candidate in plan.choice.fits)
    charts = [chart for chart in (_recall_chart(plan, styles), _speed_chart(plan, styles)) if chart is not None]
    shape, load, device = plan.shape, plan.load, plan.device
    return fill(
        "plan.html.j2",
        charts,
        plan=plan,
        title=f"{load.batch} x {labels.integer(load.context)} tokens in {labels.byte_size(device.memory)}",
        lead=f"{shape.layers} layers of width {shape.hidden_size} ({shape.rule}), decoded in bf16 on {device.name}.",
        command=command,
        columns=COLUMNS,
        rows=[(candidate, _cells(candidate)) for candidate in (plan.choice.fits if everything else plan.choice.front)],
        best={candidate.key for candidate in plan.choice.front},
        everything=everything,
        sentences=plan.sentences(everything),
        styles=styles,
        symbols=SYMBOLS,
    )


def _cells(candidate: Candidate) -> list[tuple[str, float | str | None]]:
    recall = candidate.recall
    return [
        (labels.byte_size(candidate.memory), candidate.memory),
        (f"{candidate.tokens_per_second:,.0f}", candidate.tokens_per_second),
        ("unknown", None) if recall is None else (f"{recall.value:.3f}", recall.value),
        ("", None) if recall is None else (recall.source, recall.source),
        (str(candidate.n_full), candidate.n_full),
        (labels.integer(candidate.parameters), candidate.parameters),
        (labels.byte_size(candidate.weight_bytes), candidate.weight_bytes),
        (labels.byte_size(candidate.cache_bytes), candidate.cache_bytes),
        (labels.byte_size(candidate.window_bytes), candidate.window_bytes),
        (labels.byte_size(candidate.state_bytes), candidate.state_bytes),
        (labels.byte_size(candidate.working_bytes), candidate.working_bytes),
        (labels.byte_size(candidate.decode_bytes), candidate.decode_bytes),
        (f"{candidate.prefill_flops / 1e9:,.0f}", candidate.prefill_flops),
        (candidate.bound, candidate.bound),
    ]


def _recall_chart(plan: Plan, styles: dict[str, Style]) -> Chart | None:
    shown = [candidate for candidate in plan.choice.fits if candidate.recall is not None]
    if not shown:
        return None
    front = [candidate for candidate in plan.choice.front if candidate.recall is not None]
    layout = base_layout("memory (log)", "recall")
    layout["xaxis"] |= byte_axis(
        min(candidate.memory for candidate in shown), max(candidate.memory for candidate in shown)
    )
    layout["yaxis"] |= {
        "range": [0, 1.1 * max(_recall(candidate) for candidate in shown)],
        "tickvals": None,
        "tickformat": ".2f",
    }
    points = "; ".join(
        f"{candidate.key} {labels.byte_size(candidate.memory)} {_recall(candidate):.3f}" for candidate in front
    )
    return Chart(
        name="recall",
        title="Recall against memory",
        axis="mean accuracy, higher is better",
        note=f"Large points: no other plan is as small, as fast and recalls as much. Recall: {plan.recall}.",
        description=f"Recall against memory. Not beaten: {points}.",
        data=[_points(mixer, style, shown, front, _recall, True) for mixer, style in styles.items()],
        layout=layout,
        legend=_legend(shown, styles),
    )


def _speed_chart(plan: Plan, styles: dict[str, Style]) -> Chart | None:
    shown = plan.choice.fits
    if not shown:
        return None
    layout = base_layout("memory (log)", "decode")
    layout["xaxis"] |= byte_axis(
        min(candidate.memory for candidate in shown), max(candidate.memory for candidate in shown)
    )
    points = "; ".join(f"{candidate.key} {candidate.tokens_per_second:,.0f}" for candidate in plan.choice.front)
    return Chart(
        name="speed",
        title="Decoding speed against memory",
        axis="tokens/s of the whole batch at most, higher is better",
        note="Large points: no other plan beats them. Plans of unknown recall are compared only with each other.",
        description=f"Tokens per second against memory. Not beaten: {points}.",
        data=[_points(mixer, style, shown, plan.choice.front, _speed, False) for mixer, style in styles.items()],
        layout=layout,
        legend=_legend(shown, styles),
    )


def _points(
    mixer: str, style: Style, shown: list[Candidate], front: list[Candidate], height: Any, named: bool
) -> dict[str, Any]:
    own = [candidate for candidate in shown if candidate.mixer == mixer]
    best = {candidate.key for candidate in front}
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [candidate.memory for candidate in own],
        "y": [height(candidate) for candidate in own],
        "marker": {
            "color": style.colour,
            "symbol": style.symbol,
            "size": [13 if candidate.key in best else 7 for candidate in own],
            "opacity": [1 if candidate.key in best else 0.55 for candidate in own],
            "line": {"color": "paper", "width": 1},
        },
        "text": [escape(candidate.ratio) if named and candidate.key in best else "" for candidate in own],
        "textposition": "top center",
        "textfont": {"color": "ink", "size": 12},
        "cliponaxis": False,
        "customdata": [_hover(candidate) for candidate in own],
        "hovertemplate": "%{customdata}<extra></extra>",
        "meta": {"mixer": mixer},
    }


def _hover(candidate: Candidate) -> str:
    recall = (
        "unknown" if candidate.recall is None else f"{candidate.recall.value:.3f} ({escape(candidate.recall.source)})"
    )
    full = (
        "none" if not candidate.n_full else ", ".join(map(str, candidate.full_layers)) if candidate.n_linear else "all"
    )
    return (
        f"<b>{escape(candidate.key)}</b><br>full layers: {full}<br>memory {labels.byte_size(candidate.memory)}, "
        f"of which grows {labels.byte_size(candidate.cache_bytes)}<br>"
        f"{candidate.tokens_per_second:,.0f} tokens/s<br>recall {recall}"
    )


def _legend(shown: list[Candidate], styles: dict[str, Style]) -> list[Legend]:
    present = {candidate.mixer for candidate in shown}
    return [
        Legend("mixer", mixer, style.label, style.colour, style.symbol)
        for mixer, style in styles.items()
        if mixer in present
    ]


def _recall(candidate: Candidate) -> float:
    assert candidate.recall is not None
    return candidate.recall.value


def _speed(candidate: Candidate) -> float:
    return candidate.tokens_per_second
