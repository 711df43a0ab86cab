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
    styles = mixer_styles(one.mixer for one in plan.choice.fits)
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
        rows=[(one, _cells(one)) for one in (plan.choice.fits if everything else plan.choice.front)],
        best={one.key for one in plan.choice.front},
        everything=everything,
        sentences=plan.sentences(everything),
        styles=styles,
        symbols=SYMBOLS,
    )


def _cells(one: Candidate) -> list[tuple[str, float | str | None]]:
    recall = one.recall
    return [
        (labels.byte_size(one.memory), one.memory),
        (f"{one.tokens_per_second:,.0f}", one.tokens_per_second),
        ("unknown", None) if recall is None else (f"{recall.value:.3f}", recall.value),
        ("", None) if recall is None else (recall.source, recall.source),
        (str(one.n_full), one.n_full),
        (labels.integer(one.parameters), one.parameters),
        (labels.byte_size(one.weight_bytes), one.weight_bytes),
        (labels.byte_size(one.cache_bytes), one.cache_bytes),
        (labels.byte_size(one.window_bytes), one.window_bytes),
        (labels.byte_size(one.state_bytes), one.state_bytes),
        (labels.byte_size(one.working_bytes), one.working_bytes),
        (labels.byte_size(one.decode_bytes), one.decode_bytes),
        (f"{one.prefill_flops / 1e9:,.0f}", one.prefill_flops),
        (one.bound, one.bound),
    ]


def _recall_chart(plan: Plan, styles: dict[str, Style]) -> Chart | None:
    shown = [one for one in plan.choice.fits if one.recall is not None]
    if not shown:
        return None
    front = [one for one in plan.choice.front if one.recall is not None]
    layout = base_layout("memory (log)", "recall")
    layout["xaxis"] |= byte_axis(min(one.memory for one in shown), max(one.memory for one in shown))
    layout["yaxis"] |= {"range": [0, 1.1 * max(_recall(one) for one in shown)], "tickvals": None, "tickformat": ".2f"}
    points = "; ".join(f"{one.key} {labels.byte_size(one.memory)} {_recall(one):.3f}" for one in front)
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
    layout["xaxis"] |= byte_axis(min(one.memory for one in shown), max(one.memory for one in shown))
    points = "; ".join(f"{one.key} {one.tokens_per_second:,.0f}" for one in plan.choice.front)
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
    own = [one for one in shown if one.mixer == mixer]
    best = {one.key for one in front}
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [one.memory for one in own],
        "y": [height(one) for one in own],
        "marker": {
            "color": style.colour,
            "symbol": style.symbol,
            "size": [13 if one.key in best else 7 for one in own],
            "opacity": [1 if one.key in best else 0.55 for one in own],
            "line": {"color": "paper", "width": 1},
        },
        "text": [escape(one.ratio) if named and one.key in best else "" for one in own],
        "textposition": "top center",
        "textfont": {"color": "ink", "size": 12},
        "cliponaxis": False,
        "customdata": [_hover(one) for one in own],
        "hovertemplate": "%{customdata}<extra></extra>",
        "meta": {"mixer": mixer},
    }


def _hover(one: Candidate) -> str:
    recall = "unknown" if one.recall is None else f"{one.recall.value:.3f} ({escape(one.recall.source)})"
    full = "none" if not one.n_full else ", ".join(map(str, one.full_layers)) if one.n_linear else "all"
    return (
        f"<b>{escape(one.key)}</b><br>full layers: {full}<br>memory {labels.byte_size(one.memory)}, "
        f"of which grows {labels.byte_size(one.cache_bytes)}<br>"
        f"{one.tokens_per_second:,.0f} tokens/s<br>recall {recall}"
    )


def _legend(shown: list[Candidate], styles: dict[str, Style]) -> list[Legend]:
    present = {one.mixer for one in shown}
    return [
        Legend("mixer", mixer, style.label, style.colour, style.symbol)
        for mixer, style in styles.items()
        if mixer in present
    ]


def _recall(one: Candidate) -> float:
    assert one.recall is not None
    return one.recall.value


def _speed(one: Candidate) -> float:
    return one.tokens_per_second
